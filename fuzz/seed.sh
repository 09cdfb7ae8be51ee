#!/bin/sh
# Fills fuzz/corpus/TARGET with seeds made from the interop corpus. Run it from anywhere.
set -eu
cd "$(dirname "$0")"
interop=../guest-tests/corpus/interop
mkdir -p corpus/bootstrap_v5 corpus/bootstrap_v6 corpus/blob_meta

# What once broke a target, by target.
cp -r regressions/. corpus/

# v5: without the reserved part of the superblock (see fuzz_targets/bootstrap_v5.rs).
for file in "$interop"/v5-*/bootstrap "$interop"/v5-*/*-bootstrap "$interop"/v5-*/layers/*; do
    [ "$(wc -c < "$file")" -lt 300000 ] || continue
    name=$(echo "${file#"$interop"/}" | tr / _)
    { head -c 80 "$file"; tail -c +8193 "$file"; } > "corpus/bootstrap_v5/$name"
done

# v6: bootstraps, and blobs that have one inlined.
for file in "$interop"/v6-*/bootstrap "$interop"/v6-*/*-bootstrap "$interop"/v6-*/layers/* "$interop"/v6-*inline*/blobs/*; do
    [ "$(wc -c < "$file")" -lt 300000 ] || continue
    name=$(echo "${file#"$interop"/}" | tr / _)
    cp "$file" "corpus/bootstrap_v6/$name"
done

# Blob metadata: tables of contents as they are, and chunk infos of a plain v1 table behind settings for 64 chunks of
# a large blob (see src/blob_meta.rs).
for file in "$interop"/v6-*toc*/blobs/*; do
    tail -c 4096 "$file" > "corpus/blob_meta/toc_$(basename "$file")"
done
for file in "$interop"/v6-blob-cache/blobs/*.blob.meta; do
    { printf '\0\0\0\0\040\0\0\0\377\377\377\0\377\377\377\0'; head -c 512 "$file"; } > corpus/blob_meta/table_v1
done

# FUSE messages: LOOKUP, GETATTR, READDIRPLUS and READ of the root, behind the kind and the room for a reply.
mkdir -p corpus/fuse_request
message() { # NAME OPCODE BODY-AS-PRINTF
    { printf '\000\220\001\000'; printf '\000\000\000\000\%03o\000\000\000' "$2"
      printf '\001\000\000\000\000\000\000\000\001\000\000\000\000\000\000\000'
      printf '\000\000\000\000\000\000\000\000\001\000\000\000\000\000\000\000'
      printf "$3"; } > "corpus/fuse_request/$1"
}
zeros='\000\000\000\000\000\000\000\000'
message lookup 1 'names\000'
message getattr 3 "$zeros$zeros"
message readdirplus 44 "$zeros$zeros"'\000\020\000\000\000\000\000\000'"$zeros$zeros"
message read 15 "$zeros$zeros"'\000\020\000\000\000\000\000\000'"$zeros$zeros"
message init 26 '\007\000\000\000\051\000\000\000\000\000\002\000\377\377\377\377'"$zeros"
message getxattr 22 '\000\001\000\000\000\000\000\000user.a\000'

# Archives behind their settings (see src/archive.rs): every header made right, chunks of 4 KiB. Streams as they are.
mkdir -p corpus/tar_archive corpus/tar_stream corpus/patterns
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/tree/dir"
printf 'some text\n' > "$work/tree/dir/file"
head -c 9000 seed.sh > "$work/tree/larger"
ln -s dir/file "$work/tree/link"
ln "$work/tree/dir/file" "$work/tree/second"
: > "$work/tree/$(printf '%0200d' 7)"
for format in v7 ustar gnu pax; do
    case $format in v7|ustar) list="dir larger link second" ;; *) list=. ;; esac
    # shellcheck disable=SC2086
    tar -C "$work/tree" --format="$format" --owner=0 --group=0 --mtime=@0 -cf "$work/$format" $list
    { printf '\374'; head -c 8192 "$work/$format"; } > "corpus/tar_archive/$format"
done
{ printf '\374'; cat "$work/pax"; } > corpus/tar_archive/whole
gzip -nc "$work/gnu" > corpus/tar_stream/gzip
gzip -1nc "$work/pax" | tail -c +11 > corpus/tar_stream/deflate
{ gzip -nc "$work/v7"; gzip -nc "$work/gnu"; } > corpus/tar_stream/members
zstd -qc "$work/gnu" > corpus/tar_stream/zstd
printf '/bin\n/lib/a b\n//usr/./share/\nrelative\n/lib/a b/c\n' > corpus/patterns/list

# Texts of the builder: indexes of stargz layers, the numbers of a compaction, attributes of external files.
mkdir -p corpus/stargz_toc corpus/compact_json corpus/attributes
cp ../guest-tests/corpus/stargz/*.index.json corpus/stargz_toc/
printf '{"min_used_ratio": 10, "compact_blob_size": 10485760, "blobs_dir": "/b"}' > corpus/compact_json/builder
printf '{"MinUsedRatio":"5","CompactBlobSize":"10485760","MaxCompactSize":"1","LayersToCompact":"32"}' > corpus/compact_json/nydusify
printf '{"version":"v1","files":[{"path":"/x","ranges":[[0,4096]]}]}' > corpus/compact_json/files
printf '# model\n*.bin type=external chunk_size=4MiB\n/a/**/b?c blob_id=ab chunk_0_compressed_offset=4096 compressed_size=1G crcs=0x1,0x2\n"/a b\\040" -type\n' > corpus/attributes/rules

# Requests of clients, and configuration files: the samples, and one with each key of the prefetch and blob-cache kinds.
mkdir -p corpus/api_request corpus/config_file
cp ../configs/*.v1.json ../configs/*.v2.toml corpus/config_file/
v1='{"device":{"id":"/1","backend":{"type":"registry","config":{"host":"h","repo":"r","auth":"dTpw","readahead":false,"proxy":{"fallback":false,"url":""},"mirrors":[{"host":"http://m"}]}},"cache":{"type":"blobcache","config":{"work_dir":"/c","disable_indexed_map":false}}},"mode":"direct","digest_validate":false,"amplify_io":1048576,"id_mapping":[0,100000,65536],"fs_prefetch":{"enable":true,"threads_count":8,"prefetch_all":true}}'
printf '%s' "$v1" > corpus/config_file/client
printf '{"version":2,"id":"x","backend":{"type":"s3","s3":{"region":"r","bucket_name":"b","endpoint":"","access_key_id":"i","access_key_secret":"s"}},"cache":{"type":"filecache","filecache":{"work_dir":"/c","max_bytes":7}},"rafs":{"verify":"off","prefetch":{"enable":true}}}' > corpus/config_file/v2
request() { # NAME METHOD TARGET [BODY]
    printf '%s %s HTTP/1.1\r\nHost: localhost\r\n\r\n%s' "$2" "$3" "${4-}" > "corpus/api_request/$1"
}
quoted=$(printf '%s' "$v1" | sed 's/"/\\"/g')
request mount POST '/api/v1/mount?mountpoint=%2Frafs%2Fc1%2Flowerdir' "{\"fs_type\":\"rafs\",\"source\":\"/b\",\"config\":\"$quoted\",\"prefetch_files\":[\"/a\"]}"
request shared POST '/api/v1/mount?mountpoint=/containers' '{"fs_type":"passthrough_fs","source":"/s","config":""}'
request umount DELETE '/api/v1/mount?mountpoint=/a/b'
request info GET /api/v1/daemon
request level PUT /api/v1/daemon '{"log_level":"debug"}'
request backend GET '/api/v1/daemon/backend?mountpoint=/'
request files GET '/api/v1/metrics/files?id=/a&latest=true'
request runtime PUT '/api/v1/config?id=%2F1' '{"registry_auth":"dTpw","proxy_url":"http://p:1"}'
request socket POST /api/v1/sockets '{"socket":"/s","queues":2,"root":"/t","mounts":["/t/a"]}'
request drop DELETE '/api/v1/sockets?socket=%2Fs'
request blobs DELETE '/api/v2/blobs?domain_id=d&blob_id=b'
