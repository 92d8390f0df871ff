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
        mapfile -t COMPREPLY < <(compgen -W 'check -V -h --help' -- "$current")
        return
    fi
    case $previous in
        -F | -S) mapfile -t COMPREPLY < <(compgen -f -- "$current") ;;
        -p | -l | -o) ;;
        *)
            [[ $current == -* ]] || words=$(_sshmux_hosts)
            mapfile -t COMPREPLY < <(compgen -W "$words" -- "$current")
            ;;
    esac
}

complete -F _sshmux sshmux
