# Sourced by the scripts beside it: refuses, by their `refuse`, a backup in $saved that is not whole. Changes nothing.
for name in mlflow.dump artifacts.tar env secrets; do
    [ -e "$saved/$name" ] || refuse "no $name: it is no backup, or not all of one"
done
if [ -e "$saved/SHA256SUMS" ]; then
    (cd "$saved" && sha256sum --check --quiet --strict SHA256SUMS >&2) || refuse "what is in it is not what was saved"
else
    echo "$(basename "$0" .sh): $saved has no checksums, as before 0.2: its files are read, but what was altered can't be told" >&2
fi
# tar takes an archive that breaks off between two files, or an empty one, for all of it: its end is two empty blocks.
whole() {
    [ -s "$1" ] && [ $(($(stat -c %s "$1") % 512)) = 0 ] && [ "$(tail -c 1024 "$1" | tr -d '\0' | wc -c)" = 0 ] &&
        tar -tf "$1" > /dev/null
}
for name in artifacts.tar storage.tar; do
    [ ! -e "$saved/$name" ] || whole "$saved/$name" || refuse "$name is no whole archive"
done
