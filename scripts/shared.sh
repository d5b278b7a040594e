# What scripts/accuracy and scripts/accuracy-gpu have in common; they read it in.

# Sets knobs of a plan by hand: hand_set PLAN KEY=VALUE...
hand_set() {
    local plan=$1 knob
    shift
    for knob; do
        sed -i "s|^${knob%%=*} = .*|${knob%%=*} = ${knob#*=}|" "$plan"
    done
}

# Absolute errors of a figure in a table, sorted: the middle one and the last. errors TABLE WHAT FIGURE
errors() {
    awk -F, -v figure="$3" '$5 == figure { error = $6 / $7 - 1; print (error < 0 ? -error : error) }' "$1" |
        sort -g | awk -v what="$2" '{ all[NR] = $1 } END {
            median = NR % 2 ? all[(NR + 1) / 2] : (all[NR / 2] + all[NR / 2 + 1]) / 2
            printf "%d %s: median error %.1f %%, worst %.1f %%\n", NR, what, 100 * median, 100 * all[NR] }'
}

# The middle of the numbers in like rows of some tables of `pipo verify`, each by itself: medians TABLE...
medians() {
    awk -F, -v OFS=, '
        function middle(all, row, count,    i, j, x) {
            for (i = 2; i <= count; i++)
                for (j = i; j > 1 && all[row, j - 1] > all[row, j]; j--) {
                    x = all[row, j]; all[row, j] = all[row, j - 1]; all[row, j - 1] = x
                }
            i = int((count + 1) / 2)
            return count % 2 ? all[row, i] : (all[row, i] + all[row, i + 1]) / 2
        }
        NR == 1 { print }
        FNR == 1 { next }
        !(FNR in name) { name[FNR] = $1 OFS $2 OFS $3 OFS $4; last = FNR }
        { tables[FNR]++; predicted[FNR, tables[FNR]] = $5 + 0; measured[FNR, tables[FNR]] = $6 + 0 }
        END { for (row = 2; row <= last; row++)
            printf "%s,%.10g,%.10g\n", name[row], middle(predicted, row, tables[row]), middle(measured, row, tables[row])
        }' "$@"
}
