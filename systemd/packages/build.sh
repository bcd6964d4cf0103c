#!/bin/sh
# Makes build/packages: Skerry's wheel, and from it the Debian packages skerry-common (a virtual environment of its own
# in /opt/skerry), skerry-controller, skerry-agent and skerry-cli, for the Debian and the Python of this machine.
# REVISION (1) is the last part of the packages' version; PACKAGES is another folder for them, below this checkout, that
# is made anew. Needs lab/venv.sh to have run, and no root. Skips what is done: the stamp holds the digest of everything
# that goes in. zstd, since hosts unpack it on slow processors too.
set -eu
cd "$(dirname "$0")/../.."
here=systemd/packages
out=${PACKAGES:-build/packages}
started=$(date +%s)
export UV_CACHE_DIR="${UV_CACHE_DIR:-$PWD/build/cache/uv}" UV_PYTHON_DOWNLOADS=never UV_SYSTEM_CERTS=true
mkdir -p build/tmp
export TMPDIR="$PWD/build/tmp"
umask 022
uv=build/uv/bin/uv
# Debian's own interpreter by its full name: the virtual environment is good for this one version of Python only.
python=$(readlink -f /usr/bin/python3)
version=$(.venv/bin/python -P -c 'from importlib.metadata import version; print(version("skerry"))')
full="$version-${REVISION:-1}"
architecture=$(dpkg --print-architecture)

wanted=$(
    {
        echo "$full $python $architecture"
        find agent common controller lab sim systemd docs pyproject.toml requirements.lock CHANGES.md README.md \
            -type f ! -path '*/__pycache__/*' -print0 | sort -z | xargs -0 sha256sum
    } | sha256sum | cut -d' ' -f1
)
if [ "$(cat "$out/stamp" 2>/dev/null)" = "$wanted" ]; then
    exit 0
fi
rm -rf "$out"
mkdir -p "$out/root"
echo "  making the wheel of skerry $version"
"$uv" build -q --wheel -o "$out" .
rm -f "$out/.gitignore"

# Of the locked packages those that skerry needs to run, each with the hashes of the lock and no others.
"$uv" pip compile -q pyproject.toml -c requirements.lock --universal --generate-hashes --no-header --no-annotate \
    -o "$out/root/requirements.txt"
if grep -vxF -f requirements.lock "$out/root/requirements.txt" | grep -v '[^\\]$'; then
    echo "$out/root/requirements.txt has what requirements.lock has not: make the lock anew" >&2
    exit 1
fi

echo "  making /opt/skerry for $(basename "$python")"
environment="$out/root/skerry-common/opt/skerry"
"$uv" venv -q --python "$python" "$environment"
VIRTUAL_ENV="$PWD/$environment" "$uv" pip sync -q --link-mode copy --require-hashes "$out/root/requirements.txt"
VIRTUAL_ENV="$PWD/$environment" "$uv" pip install -q --link-mode copy --no-deps "$out"/skerry-*.whl
# Only what does not know where it was built; commands are ours, by the interpreter's option -P.
find "$environment/bin" -mindepth 1 ! -name 'python*' -delete
find "$environment" \( -name direct_url.json -o -name uv_cache.json -o -name .gitignore -o -name .lock -o -name CACHEDIR.TAG \) -delete
# What was compiled here knows it from its debugging symbols.
strip --strip-debug "$environment"/lib/python*/site-packages/libvirtmod*.so
find "$environment" -type d -name tests -path '*/numpy/*' -prune -exec rm -r {} +
for command in controller agent; do
    printf '#!/opt/skerry/bin/python -P\nfrom %s.main import main\n\nmain()\n' "$command" \
        >"$environment/bin/skerry-$command"
done
printf '#!/opt/skerry/bin/python -P\nfrom controller.cli.main import main\n\nmain()\n' >"$environment/bin/skerry"
chmod 755 "$environment"/bin/skerry*
# Compiled here, since nobody may write there later, and with the paths that tracebacks are to show.
"$python" -m compileall -q -j 0 --invalidation-mode unchecked-hash -s "$PWD/$out/root/skerry-common" -p / \
    "$environment/lib" >/dev/null

install_to() { # FILE PACKAGE/PATH [MODE]
    install -D -m "${3:-644}" "$1" "$out/root/$2"
}
install_to systemd/skerry-controller.service skerry-controller/lib/systemd/system/skerry-controller.service
install_to systemd/skerry-upgrade.service skerry-controller/lib/systemd/system/skerry-upgrade.service
install_to systemd/skerry-agent.service skerry-agent/lib/systemd/system/skerry-agent.service
for package in skerry-controller skerry-agent; do
    install_to systemd/tmpfiles.d/$package.conf "$package/usr/lib/tmpfiles.d/$package.conf"
done
install_to systemd/skerry.slice skerry-common/lib/systemd/system/skerry.slice
install_to systemd/skerry-guests.slice skerry-agent/lib/systemd/system/skerry-guests.slice
install_to systemd/sysusers.d/skerry-controller.conf skerry-controller/usr/lib/sysusers.d/skerry-controller.conf
install_to $here/skerry-controller/controller.toml skerry-controller/etc/skerry/controller.toml
install_to $here/skerry-agent/agent.toml skerry-agent/etc/skerry/agent.toml
install_to $here/skerry-controller/command skerry-controller/usr/bin/skerry-controller 755
mkdir -p "$out/root/skerry-agent/usr/bin" "$out/root/skerry-cli/usr/bin"
ln -s /opt/skerry/bin/skerry-agent "$out/root/skerry-agent/usr/bin/skerry-agent"
ln -s /opt/skerry/bin/skerry "$out/root/skerry-cli/usr/bin/skerry"
.venv/bin/skerry completion bash >"$out/root/completion"
install_to "$out/root/completion" skerry-cli/usr/share/bash-completion/completions/skerry

find docs -name '*.md' | while read -r page; do
    install_to "$page" "skerry-common/usr/share/doc/skerry-common/$page"
done
install_to CHANGES.md skerry-common/usr/share/doc/skerry-common/CHANGES.md
install_to README.md skerry-common/usr/share/doc/skerry-common/README.md

for package in skerry-common skerry-controller skerry-agent skerry-cli; do
    tree="$out/root/$package"
    install_to $here/copyright "$package/usr/share/doc/$package/copyright"
    mkdir -p "$tree/DEBIAN"
    sed -e "s/@VERSION@/$full/; s/@ARCHITECTURE@/$architecture/; s/@PYTHON@/$(basename "$python")/" \
        $here/$package/control >"$tree/DEBIAN/control"
    echo "Installed-Size: $(du -sk --apparent-size "$tree" | cut -f1)" >>"$tree/DEBIAN/control"
    for script in postinst prerm postrm; do
        [ ! -e "$here/$package/$script" ] || install_to "$here/$package/$script" "$package/DEBIAN/$script" 755
    done
    (cd "$tree" && find etc -type f 2>/dev/null | sed 's|^|/|') >"$out/root/conffiles"
    [ ! -s "$out/root/conffiles" ] || install_to "$out/root/conffiles" "$package/DEBIAN/conffiles"
    (cd "$tree" && find . -path ./DEBIAN -prune -o -type f -printf '%P\0' | sort -z | xargs -0 md5sum) \
        >"$tree/DEBIAN/md5sums"
    dpkg-deb --root-owner-group -Zzstd -z3 --build "$tree" "$out/${package}_${full}_$architecture.deb" >/dev/null
done
rm -rf "$out/root"
echo "$wanted" >"$out/stamp"
(cd "$out" && ls -sh1 ./*.deb ./*.whl | sed 's|^|  |')
echo "  packages made in $(($(date +%s) - started)) s"
