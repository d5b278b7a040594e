# What scripts/accuracy and scripts/accuracy-gpu have in common; they read it in.

# Sets knobs of a plan by hand: hand_set PLAN KEY=VALUE...
hand_set() {
    local plan=$1 knob
    shift
    for knob; do
        sed -i "s|^${knob%%=*} = .*|${knob%%=*} = ${knob#*=}|" "$plan"
    done
}

# Absolute errors of the requests in a table, sorted: the middle one and the last. errors TABLE WHAT
errors() {
    awk -F, '$5 == "request" { error = $6 / $7 - 1; print (error < 0 ? -error : error) }' "$1" |
        sort -g | awk -v what="$2" '{ all[NR] = $1 } END {
            median = NR % 2 ? all[(NR + 1) / 2] : (all[NR / 2] + all[NR / 2 + 1]) / 2
            printf "%d %s: median error %.1f %%, worst %.1f %%\n", NR, what, 100 * median, 100 * all[NR] }'
}
