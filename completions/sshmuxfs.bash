# bash completion for sshmuxfs(1)

_sshmuxfs_own_options='
    share= downstream= upstream= putty= password_stdin ssh_command=
    ro rw nosuid suid nodev dev noexec exec sync async dirsync noatime atime auto_unmount fsname= nonempty
    allow_other allow_root default_permissions uid= gid= umask= idmap= contain_symlinks no_contain_symlinks
    transform_symlinks follow_symlinks disable_hardlink attr_timeout= entry_timeout= negative_timeout= dir_cache=
    dcache_timeout= dcache_stat_timeout= dcache_link_timeout= dcache_dir_timeout= dcache_max_size= max_read=
    max_write= direct_io no_direct_io sshfs_sync no_readahead sftp_server= deadline= reconnect debug log_file= log_level=
'
_sshmuxfs_ssh_options='
    AddKeysToAgent= AddressFamily= AFSTokenPassing= BatchMode= BindAddress= BindInterface= CanonicalDomains=
    CanonicalizeFallbackLocal= CanonicalizeHostname= CanonicalizeMaxDots= CanonicalizePermittedCNAMEs=
    CASignatureAlgorithms= CertificateFile= ChallengeResponseAuthentication= ChannelTimeout= CheckHostIP= Cipher=
    Ciphers= ClearAllForwardings= Compression= CompressionLevel= ConnectionAttempts= ConnectTimeout= ControlMaster=
    ControlPath= ControlPersist= DSAAuthentication= DynamicForward= EnableEscapeCommandline= EnableSSHKeysign=
    EscapeChar= ExitOnForwardFailure= FallBackToRsh= FingerprintHash= ForkAfterAuthentication= ForwardAgent=
    ForwardX11= ForwardX11Timeout= ForwardX11Trusted= GatewayPorts= GlobalKnownHostsFile= GlobalKnownHostsFile2=
    GSSAPIAuthentication= GSSAPIClientIdentity= GSSAPIDelegateCredentials= GSSAPIKexAlgorithms= GSSAPIKeyExchange=
    GSSAPIRenewalForcesRekey= GSSAPIServerIdentity= GSSAPITrustDns= HashKnownHosts= HostbasedAcceptedAlgorithms=
    HostbasedAuthentication= HostbasedKeyTypes= HostKeyAlgorithms= HostKeyAlias= HostName= IdentitiesOnly=
    IdentityAgent= IdentityFile= IdentityFile2= IgnoreUnknown= IPQoS= KbdInteractiveAuthentication=
    KbdInteractiveDevices= KeepAlive= KerberosAuthentication= KerberosTgtPassing= KexAlgorithms= KnownHostsCommand=
    LocalCommand= LocalForward= LogLevel= LogVerbose= MACs= NoHostAuthenticationForLocalhost=
    NumberOfPasswordPrompts= ObscureKeystrokeTiming= PasswordAuthentication= PermitLocalCommand= PermitRemoteOpen=
    PKCS11Provider= Port= PreferredAuthentications= Protocol= ProxyCommand= ProxyJump= ProxyUseFdpass=
    PubkeyAcceptedAlgorithms= PubkeyAcceptedKeyTypes= PubkeyAuthentication= RefuseConnection= RekeyLimit=
    RemoteCommand= RemoteForward= RequestTTY= RequiredRSASize= RevokedHostKeys= RhostsAuthentication=
    RhostsRSAAuthentication= RSAAuthentication= SecurityKeyProvider= SendEnv= ServerAliveCountMax=
    ServerAliveInterval= SessionType= SetEnv= SkeyAuthentication= SmartcardDevice= StdinNull= StreamLocalBindMask=
    StreamLocalBindUnlink= StrictHostKeyChecking= SyslogFacility= Tag= TCPKeepAlive= TISAuthentication= Tunnel=
    TunnelDevice= UpdateHostKeys= UsePrivilegedPort= User= UserKnownHostsFile= UserKnownHostsFile2= UseRoaming=
    UseRsh= VerifyHostKeyDNS= VersionAddendum= VisualHostKey= WarnWeakCrypto= XAuthLocation=
'

# Offer the lines of stdin for the word $1. bash has cut that word at `=` and `:`, and puts back only the last piece.
_sshmuxfs_reply() {
    local last=$1
    [[ $COMP_WORDBREAKS == *=* ]] && last=${last##*=}
    [[ $COMP_WORDBREAKS == *:* ]] && last=${last##*:}
    local -i index kept=$((${#1} - ${#last}))
    mapfile -t COMPREPLY
    for index in "${!COMPREPLY[@]}"; do
        COMPREPLY[index]=${COMPREPLY[index]:kept}
    done
}

_sshmuxfs_hosts() {
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

# The last item of a list of options; the list may be glued to its -o.
_sshmuxfs_options() {
    local current=$1 item=${1##*,} head name words=
    [[ $item == "$current" ]] && item=${item#-o}
    head=${current%"$item"}
    if [[ $item != *=* ]]; then
        compopt -o nospace 2>/dev/null
        words="$_sshmuxfs_own_options $_sshmuxfs_ssh_options"
        _sshmuxfs_reply "$current" < <(compgen -P "$head" -W "$words" -- "$item")
        return
    fi
    name=${item%%=*}
    head=$head$name=
    case ${name,,} in
        log_file | identityfile | certificatefile | controlpath | *knownhostsfile)
            _sshmuxfs_reply "$current" < <(compgen -P "$head" -f -- "${item#*=}")
            return
            ;;
        idmap) words='none user' ;;
        dir_cache | cache) words='yes no' ;;
        log_level) words='debug info warning error' ;;
    esac
    _sshmuxfs_reply "$current" < <(compgen -P "$head" -W "$words" -- "${item#*=}")
}

_sshmuxfs() {
    local line=${COMP_LINE:0:COMP_POINT} current word user= previous=
    local -a before
    local -i places=0
    COMPREPLY=()
    current=${line##*[[:space:]]}
    read -ra before <<<"${line%"$current"}"
    for word in "${before[@]:1}"; do
        # A place is what is neither an option nor the value of one.
        [[ $word == -* || $previous == -[oplFS] ]] || places+=1
        previous=$word
    done
    case $previous:$current in
        -o:* | *:-o*) _sshmuxfs_options "$current" ;;
        -[FS]:*) _sshmuxfs_reply "$current" < <(compgen -f -- "$current") ;;
        -[pl]:*) ;;
        *:-*) _sshmuxfs_reply "$current" < <(compgen -W '-o -p -l -F -S -C -A -f -d -s -h -V --debug --help --version' -- "$current") ;;
        *)
            compopt -o nospace 2>/dev/null
            if ((places == 0)); then
                [[ $current == *@* ]] && user=${current%%@*}@
                _sshmuxfs_reply "$current" < <(
                    compgen -P "$user" -S : -W "$(_sshmuxfs_hosts)" -- "${current#"$user"}"
                )
            elif ((places == 1)); then
                compopt -o filenames 2>/dev/null
                _sshmuxfs_reply "$current" < <(compgen -d -- "$current")
            fi
            ;;
    esac
}

complete -F _sshmuxfs sshmuxfs
