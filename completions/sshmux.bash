# bash completion for sshmux(1)

_sshmux_hosts() {
    local file word
    local -a words
    for file in ~/.ssh/config ~/.ssh/config.d/* /etc/ssh/ssh_config; do
        [[ -r $file ]] || continue
        while read -ra words; do
            [[ ${words[0],,} == host ]] || continue
            for word in "${words[@]:1}"; do
                [[ $word == *[*?!]* ]] || printf '%s\n' "$word"
            done
        done <"$file"
    done 2>/dev/null
}

_sshmux() {
    local current=${COMP_WORDS[COMP_CWORD]} previous=${COMP_WORDS[COMP_CWORD - 1]}
    local words='-F -p -l -S -o -h --help'
    COMPREPLY=()
    if ((COMP_CWORD == 1)); then
        mapfile -t COMPREPLY < <(compgen -W \
            'check start list status top forward cancel stop exit config -V -h --help' -- "$current")
        return
    fi
    case $previous in
        -F | -S)
            mapfile -t COMPREPLY < <(compgen -f -- "$current")
            return
            ;;
        --persist)
            mapfile -t COMPREPLY < <(compgen -W 'yes no' -- "$current")
            return
            ;;
        -p | -l | -o | -L | -R | -D) return ;;
    esac
    case ${COMP_WORDS[1]} in
        start) words+=' -A -f --persist --json' ;;
        list) words='-F --json -h --help' ;;
        status) words+=' --json' ;;
        top) words+=' --once' ;;
        forward | cancel) words+=' -L -R -D' ;;
        exit) words+=' --now' ;;
    esac
    if [[ $current != -* ]]; then
        [[ ${COMP_WORDS[1]} == list ]] && return
        words=$(_sshmux_hosts)
    fi
    mapfile -t COMPREPLY < <(compgen -W "$words" -- "$current")
}

complete -F _sshmux sshmux
