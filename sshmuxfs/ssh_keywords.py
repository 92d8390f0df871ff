"""Options of ssh, which `-o` takes as well as the mount's own: by name, since what they mean is ssh's business.

The one rule: a keyword that is not here is no option of ssh for us, so that a mistyped option of the mount is told and
not handed on. Imported by `sshmuxfs.options`, its help, and the tests.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

# The keywords of ssh_config(5) up to OpenSSH 10, with the older ones that ssh still takes or says are gone, and those
# of GSSAPI that Debian and Fedora add. All go to ssh, which knows what its version does with them.
_SSH_NAMES: Final = """
    AddKeysToAgent AddressFamily AFSTokenPassing BatchMode BindAddress BindInterface CanonicalDomains
    CanonicalizeFallbackLocal CanonicalizeHostname CanonicalizeMaxDots CanonicalizePermittedCNAMEs CASignatureAlgorithms
    CertificateFile ChallengeResponseAuthentication ChannelTimeout CheckHostIP Cipher Ciphers ClearAllForwardings
    Compression CompressionLevel ConnectionAttempts ConnectTimeout ControlMaster ControlPath ControlPersist
    DSAAuthentication DynamicForward EnableEscapeCommandline EnableSSHKeysign EscapeChar ExitOnForwardFailure
    FallBackToRsh FingerprintHash ForkAfterAuthentication ForwardAgent ForwardX11 ForwardX11Timeout ForwardX11Trusted
    GatewayPorts GlobalKnownHostsFile GlobalKnownHostsFile2 GSSAPIAuthentication GSSAPIClientIdentity
    GSSAPIDelegateCredentials GSSAPIKexAlgorithms GSSAPIKeyExchange GSSAPIRenewalForcesRekey GSSAPIServerIdentity
    GSSAPITrustDns HashKnownHosts HostbasedAcceptedAlgorithms HostbasedAuthentication HostbasedKeyTypes
    HostKeyAlgorithms HostKeyAlias HostName IdentitiesOnly IdentityAgent IdentityFile IdentityFile2 IgnoreUnknown IPQoS
    KbdInteractiveAuthentication KbdInteractiveDevices KeepAlive KerberosAuthentication KerberosTgtPassing
    KexAlgorithms KnownHostsCommand LocalCommand LocalForward LogLevel LogVerbose MACs
    NoHostAuthenticationForLocalhost NumberOfPasswordPrompts ObscureKeystrokeTiming PasswordAuthentication
    PermitLocalCommand PermitRemoteOpen PKCS11Provider Port PreferredAuthentications Protocol ProxyCommand ProxyJump
    ProxyUseFdpass PubkeyAcceptedAlgorithms PubkeyAcceptedKeyTypes PubkeyAuthentication RefuseConnection RekeyLimit
    RemoteCommand RemoteForward RequestTTY RequiredRSASize RevokedHostKeys RhostsAuthentication
    RhostsRSAAuthentication RSAAuthentication SecurityKeyProvider SendEnv ServerAliveCountMax ServerAliveInterval
    SessionType SetEnv SkeyAuthentication SmartcardDevice StdinNull StreamLocalBindMask StreamLocalBindUnlink
    StrictHostKeyChecking SyslogFacility Tag TCPKeepAlive TISAuthentication Tunnel TunnelDevice UpdateHostKeys
    UsePrivilegedPort User UserKnownHostsFile UserKnownHostsFile2 UseRoaming UseRsh VerifyHostKeyDNS VersionAddendum
    VisualHostKey WarnWeakCrypto XAuthLocation
"""
SSH_NAMES: Final[Mapping[str, str]] = MappingProxyType({name.lower(): name for name in _SSH_NAMES.split()})

# They group lines of a file, and ssh refuses them on its command line as well.
ONLY_IN_SSH_CONFIG: Final = frozenset({"host", "match", "include"})
