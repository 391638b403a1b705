#!/bin/sh
# Leads what one user's processes send to a sidecar's transparent listener, and stops the rest.
#
# Only packets of the workload's user are touched, so the sidecar (another user) and everything
# else on the machine go on as before. IPv4 and IPv6 alike; one table or one pair of chains per
# user, so that removal takes out exactly what was put in. See docs/how-to/transparent.md.
set -eu

usage() {
    cat <<'END'
usage: redirect.sh up   --uid UID [--port PORT] [--ports LIST] [--dns WHAT] [--loopback LIST]
                        [--backend NAME] [--dry-run]
       redirect.sh down --uid UID [--backend NAME]
       redirect.sh show --uid UID [--backend NAME]

  --uid UID        the workload's user (a number, not 0)
  --port PORT      the sidecar's transparent listener on 127.0.0.1 and ::1 (7073)
  --ports LIST     TCP ports that are redirected: numbers and ranges (80,443)
  --dns WHAT       servers that may be asked on port 53: addresses with commas between them,
                   "resolv.conf" for those of /etc/resolv.conf, or "none" (none)
  --loopback LIST  further TCP ports that may be reached on 127.0.0.1 and ::1 (none)
  --backend NAME   nft, iptables, iptables-nft or iptables-legacy (nft where there is one, else
                   iptables); without it, down and show look at all of them
  --dry-run        print the rules and change nothing

Everything else that the user sends is refused, answers to who called it excepted.
Exit status: 0 done, 1 failed (or nothing to show), 2 wrong usage.
END
}

wrong() {
    echo "redirect.sh: $*" >&2
    exit 2
}

# --- arguments -----------------------------------------------------------------------------------

# Digits only and within bounds: what passes may stand in a rule.
number() { # name value least most
    case $2 in '' | *[!0-9]* | 0?* | ???????????*) wrong "$1: not a number: '$2'" ;; esac
    if [ "$2" -lt "$3" ] || [ "$2" -gt "$4" ]; then wrong "$1: $2 is not between $3 and $4"; fi
}

ports() { # name list; one port or FIRST-LAST per line
    [ -n "$2" ] || wrong "$1: no ports"
    case $2 in *[!0-9,-]* | *,, | ,* | *, | *,,*) wrong "$1: not a list of ports: '$2'" ;; esac
    for port in $(echo "$2" | tr ',' ' '); do
        number "$1" "${port%%-*}" 1 65535
        number "$1" "${port#*-}" "${port%%-*}" 65535
        echo "$port"
    done
}

servers() { # one address per line
    case $1 in
    none) ;;
    resolv.conf)
        found=$(sed -n 's/^[[:space:]]*nameserver[[:space:]]\{1,\}\([0-9A-Fa-f:.]\{1,\}\).*$/\1/p' \
            /etc/resolv.conf)
        [ -n "$found" ] || wrong "--dns: /etc/resolv.conf names no server"
        echo "$found"
        ;;
    '' | *[!0-9A-Fa-f:.,]*) wrong "--dns: not addresses: '$1'" ;;
    *) echo "$1" | tr ',' '\n' ;;
    esac
}

[ $# -gt 0 ] || { usage >&2; exit 2; }
case $1 in
up | down | show) action=$1 ;;
-h | --help) usage; exit 0 ;;
*) usage >&2; exit 2 ;;
esac
shift

uid='' port=7073 redirected=80,443 dns=none loopback='' backend='' dry_run=''
while [ $# -gt 0 ]; do
    case $1 in
    --dry-run)
        dry_run=yes
        shift
        continue
        ;;
    --uid | --port | --ports | --dns | --loopback | --backend) ;;
    *) wrong "unknown: $1" ;;
    esac
    [ $# -gt 1 ] || wrong "$1: a value is missing"
    case $1 in
    --uid) uid=$2 ;;
    --port) port=$2 ;;
    --ports) redirected=$2 ;;
    --dns) dns=$2 ;;
    --loopback) loopback=$2 ;;
    --backend) backend=$2 ;;
    esac
    shift 2
done

[ -n "$uid" ] || wrong "--uid is missing"
# Root could take the rules away again, so rules for it would only look like protection.
number --uid "$uid" 1 4294967294
number --port "$port" 1 65535
redirected=$(ports --ports "$redirected")
[ -z "$loopback" ] || loopback=$(ports --loopback "$loopback")
dns=$(servers "$dns")
case $backend in
'' | nft | iptables | iptables-nft | iptables-legacy) ;;
*) wrong "--backend: unknown: '$backend'" ;;
esac
[ -z "$dry_run" ] || [ "$action" = up ] || wrong "--dry-run goes with up"

# --- what both kinds of rules are made of --------------------------------------------------------

# The order of the rules, in both languages:
#   nat     loopback and the DNS servers as they are; the redirected ports to the listener
#   filter  to the listener; to those who called; to the DNS servers (as they were called before
#           any other NAT); to further loopback ports; nothing else

of_family() { # 4|6: the servers of that family
    for address in $dns; do
        case $address in *:*) family=6 ;; *) family=4 ;; esac
        [ "$family" != "$1" ] || echo "$address"
    done
}

# --- nftables ------------------------------------------------------------------------------------

table="valetkey_$uid"

list() { # lines to "a, b, c"
    echo "$1" | sed -e ':a' -e '$!N' -e 's/\n/, /' -e 'ta'
}

nft_rules() {
    v4=$(of_family 4)
    v6=$(of_family 6)
    asked='meta l4proto { tcp, udp } ct original proto-dst 53 ct original'
    echo "table inet $table"
    echo "delete table inet $table"
    echo "table inet $table {"
    echo "    chain nat_output {"
    echo "        type nat hook output priority -100; policy accept;"
    echo "        meta skuid $uid jump workload_nat"
    echo "    }"
    echo "    chain workload_nat {"
    echo "        ip daddr 127.0.0.0/8 return"
    echo "        ip6 daddr ::1 return"
    [ -z "$v4" ] || echo "        ip daddr { $(list "$v4") } tcp dport 53 return"
    [ -z "$v6" ] || echo "        ip6 daddr { $(list "$v6") } tcp dport 53 return"
    echo "        tcp dport { $(list "$redirected") } redirect to :$port"
    echo "    }"
    echo "    chain filter_output {"
    echo "        type filter hook output priority 0; policy accept;"
    echo "        meta skuid $uid jump workload_filter"
    echo "    }"
    echo "    chain workload_filter {"
    echo "        ip daddr 127.0.0.1 tcp dport $port accept"
    echo "        ip6 daddr ::1 tcp dport $port accept"
    echo "        ct direction reply accept"
    [ -z "$v4" ] || echo "        $asked ip daddr { $(list "$v4") } accept"
    [ -z "$v6" ] || echo "        $asked ip6 daddr { $(list "$v6") } accept"
    if [ -n "$loopback" ]; then
        echo "        ip daddr 127.0.0.1 tcp dport { $(list "$loopback") } accept"
        echo "        ip6 daddr ::1 tcp dport { $(list "$loopback") } accept"
    fi
    echo "        ct state invalid drop"
    echo "        meta l4proto tcp reject with tcp reset"
    echo "        reject with icmpx admin-prohibited"
    echo "    }"
    echo "}"
}

# The first line makes the second work whether there was a table or not.
nft_down() {
    printf 'table inet %s\ndelete table inet %s\n' "$table" "$table" | nft -f -
}

# --- iptables ------------------------------------------------------------------------------------

chain="VALETKEY_$uid"

tool() { # 4|6 [suffix]: ip6tables-nft-restore of iptables-nft, 6 and -restore
    case $1 in 4) echo "$backend${2:-}" ;; 6) echo "ip6${backend#ip}${2:-}" ;; esac
}

# Without IPv6 in the kernel there is no way out over it either.
families() {
    if [ -e /proc/net/if_inet6 ]; then echo 4 6; else echo 4; fi
}

nat_rules() { # 4|6
    case $1 in 4) all_loopback=127.0.0.0/8 ;; 6) all_loopback=::1/128 ;; esac
    echo '*nat'
    echo ":$chain - [0:0]"
    echo "-A $chain -d $all_loopback -j RETURN"
    for address in $(of_family "$1"); do
        echo "-A $chain -d $address -p tcp --dport 53 -j RETURN"
    done
    for each in $redirected; do
        echo "-A $chain -p tcp --dport $(echo "$each" | tr '-' ':') -j REDIRECT --to-ports $port"
    done
    echo COMMIT
}

filter_rules() { # 4|6
    case $1 in
    4) local_address=127.0.0.1 refused=icmp-admin-prohibited ;;
    6) local_address=::1 refused=icmp6-adm-prohibited ;;
    esac
    echo '*filter'
    echo ":$chain - [0:0]"
    echo "-A $chain -d $local_address -p tcp --dport $port -j RETURN"
    echo "-A $chain -m conntrack --ctdir REPLY -j RETURN"
    for address in $(of_family "$1"); do
        for protocol in udp tcp; do
            echo "-A $chain -p $protocol -m conntrack --ctorigdst $address --ctorigdstport 53 -j RETURN"
        done
    done
    for each in $loopback; do
        echo "-A $chain -d $local_address -p tcp --dport $(echo "$each" | tr '-' ':') -j RETURN"
    done
    echo "-A $chain -m conntrack --ctstate INVALID -j DROP"
    echo "-A $chain -p tcp -j REJECT --reject-with tcp-reset"
    echo "-A $chain -j REJECT --reject-with $refused"
    echo COMMIT
}

# Each COMMIT replaces a chain as a whole; the jump comes after what it leads to. The confinement
# is there first and goes last: whatever fails in between, nothing is open that was not before.
iptables_up() {
    for family in $(families); do
        for kind in filter nat; do
            "${kind}_rules" "$family" | "$(tool "$family" -restore)" -w --noflush
            "$(tool "$family")" -w -t $kind -C OUTPUT -m owner --uid-owner "$uid" -j "$chain" \
                2>/dev/null ||
                "$(tool "$family")" -w -t $kind -I OUTPUT -m owner --uid-owner "$uid" -j "$chain"
        done
    done
}

iptables_dry_run() {
    for family in $(families); do
        for kind in filter nat; do
            echo "# $(tool "$family" -restore) -w --noflush"
            "${kind}_rules" "$family"
            echo "# $(tool "$family") -w -t $kind -I OUTPUT -m owner --uid-owner $uid -j $chain"
        done
    done
}

iptables_down() {
    for family in $(families); do
        for kind in nat filter; do
            command="$(tool "$family") -w -t $kind"
            while $command -D OUTPUT -m owner --uid-owner "$uid" -j "$chain" 2>/dev/null; do :; done
            $command -S >/dev/null  # fails for what -F would fail for, a missing chain excepted
            ! $command -S "$chain" >/dev/null 2>&1 || { $command -F "$chain"; $command -X "$chain"; }
        done
    done
}

iptables_show() {
    for family in $(families); do
        for kind in nat filter; do
            "$(tool "$family")" -w -t $kind -S "$chain" 2>/dev/null | sed "s/^/$kind /"
        done
    done
}

# --- one action ----------------------------------------------------------------------------------

has() { command -v "$1" >/dev/null 2>&1; }

# Every kind of rules that may be there. Looking into tables of the old kind would make them.
kinds() {
    ! has nft || echo nft
    for each in iptables-nft iptables-legacy iptables; do
        has $each || continue
        case $($each --version) in
        *nf_tables*) ;;
        *) cat /proc/net/ip_tables_names /proc/net/ip6_tables_names 2>/dev/null | grep -q . ||
            continue ;;
        esac
        echo $each
    done
}

case $action in
up)
    [ -n "$backend" ] || if has nft; then backend=nft; else backend=iptables; fi
    has "$backend" || { echo "redirect.sh: $backend is not installed" >&2; exit 1; }
    case $backend$dry_run in
    nft) nft_rules | nft -f - ;;
    nftyes) nft_rules ;;
    *yes) iptables_dry_run ;;
    *) iptables_up ;;
    esac
    ;;
down)
    for backend in ${backend:-$(kinds)}; do
        if [ "$backend" = nft ]; then nft_down; else iptables_down; fi
    done
    ;;
show)
    shown=$(
        for backend in ${backend:-$(kinds)}; do
            if [ "$backend" = nft ]; then
                nft list table inet "$table" 2>/dev/null || :
            else
                iptables_show
            fi
        done
    )
    [ -n "$shown" ] || { echo "redirect.sh: no rules for user $uid" >&2; exit 1; }
    echo "$shown"
    ;;
esac
