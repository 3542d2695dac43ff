/* An operand of a concatenation that has a scale of its own: `outer` runs of x, spread over y. */
typedef struct {
    int32_t outer, run, y_step; /* bytes */
    int32_t in_zero;
    float scale, lo, hi; /* m / 2^16; relative to the zero point */
    int32_t zero;
} rescale_runs_params;
