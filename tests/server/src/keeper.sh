# Stops the servers below the directory $1 and removes it, once the standard input ends: the test process holds the other
# end of that pipe, and the kernel closes it however that process ends. A process is ours when its working directory lies
# below $1, as every PostgreSQL process's does; a process number alone could have been given to somebody else meanwhile.
root=$1
cat >/dev/null

ours() {
    for process in /proc/[0-9]*; do
        case "$(readlink "$process/cwd" 2>/dev/null)" in
        "$root"/*) echo "${process#/proc/}" ;;
        esac
    done
}

# SIGQUIT to the postmaster is the immediate stop: it takes its children and its shared memory with it.
for file in "$root"/*/data/postmaster.pid; do
    [ -f "$file" ] || continue
    pid=$(head -n 1 "$file")
    [ "$(readlink "/proc/$pid/cwd")" = "${file%/*}" ] && kill -QUIT "$pid"
done 2>/dev/null

rounds=0
while left=$(ours) && [ -n "$left" ]; do
    rounds=$((rounds + 1))
    # The postmaster itself kills children that ignore the immediate stop after five seconds.
    [ "$rounds" -gt 160 ] && kill -KILL $left 2>/dev/null
    [ "$rounds" -gt 400 ] && break
    sleep 0.05
done
rm -rf "$root"
