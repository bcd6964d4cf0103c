#!/bin/sh
# User data of the story's guests: fetches the page of @PEER@ for ever, and writes records to the data volume that is
# plugged in, each acknowledged on the console once it is safe. Record N is 512 bytes: `record N SUM`, where SUM is the
# digest of N and the record before it. When a volume comes, all its records are read and checked first.
. /lib/tiny/say
exec </dev/null >/dev/console 2>&1

reach() {
    while sleep 3; do
        timeout 5 wget -q -O - "http://@PEER@/" | sed 's/^/reached: /'
    done
}

volume() {
    for path in /sys/block/vd[b-z]; do
        [ -e "$path/serial" ] || continue
        serial=
        read -r serial <"$path/serial"
        case "$serial" in vol-*) disk=${path##*/} && return 0 ;; esac
    done
    return 1
}

digest() {
    set -- $(echo "$1 $2" | sha256sum)
    sum=${1%????????????????????????????????????????????????}
}

look() {
    count=0 last=none
    head -c 2097152 "/dev/$disk" | tr -d '\0' | tr -s ' ' >/run/records
    while read -r word number said; do
        [ "$word $number" = "record $count" ] || break
        digest "$count" "$last"
        [ "$said" = "$sum " ] || [ "$said" = "$sum" ] || { say "damaged: record $count" && break; }
        last=$sum count=$((count + 1))
    done </run/records
    say "found $count records on $serial"
}

keep() {
    held=none sectors=
    while sleep 1; do
        if ! volume; then
            [ "$held" = none ] || say "volume gone"
            held=none
            continue
        fi
        [ "$held" = "$disk" ] || { look && held=$disk sectors=; }
        was=$sectors
        read -r sectors <"/sys/block/$disk/size"
        [ "$was" = "$sectors" ] || say "volume $serial has $((sectors / 2048)) MiB"
        digest "$count" "$last"
        printf '%-511s\n' "record $count $sum" | dd of="/dev/$disk" bs=512 seek="$count" conv=notrunc,fsync 2>/dev/null || continue
        # Where it had just gone, dd made a file of that name.
        [ -b "/dev/$disk" ] || { rm -f "/dev/$disk" && continue; }
        say "acked $count $sum"
        last=$sum count=$((count + 1))
    done
}

[ @PEER@ = nobody ] || reach &
keep &
