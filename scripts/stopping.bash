# Sourced by scripts that start commands in the background, which ignore Ctrl-C: it and SIGTERM end these too.
# The script then dies of the same signal, so that a loop around it ends. A second signal reaches the commands as well.

stop_all() { # SIGNAL
    local pids
    pids=$(jobs -pr)
    trap '[ -z "$pids" ] || kill -TERM $pids 2>/dev/null || true' INT TERM
    [ -z "$pids" ] || kill -TERM $pids 2>/dev/null || true
    while [ -n "$(jobs -pr)" ]; do wait || true; done
    trap - INT TERM
    kill -s "$1" $$
}
trap 'stop_all INT' INT
trap 'stop_all TERM' TERM

attended() { # COMMAND [ARGUMENT ...]: as if it were alone, but bash hears of SIGTERM before its end
    "$@" & wait "$!"
}
