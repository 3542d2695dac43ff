/* An operand of a concatenation with its own scale: `outer` runs of x, written at intervals into y. */
typedef struct {
    int32_t outer, run, y_step; /* bytes */
    int32_t in_zero;
    float scale, lo, hi; /* m / 2^16; relative to the zero point */
    int32_t zero;
} rescale_runs_params;
