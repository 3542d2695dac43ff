/* Convolution of each channel by itself, equations (2) and (3).
 *
 * A row of the result is `runs` runs of `run_bytes` bytes. It is computed in blocks of 64 bytes, which hold channels of
 * neighbouring pixels. Channels and weights repeat after `period` blocks. Numbers for a block are in the order of load_taps:
 * vector k has bytes 16 * i + 4 * k .. 16 * i + 4 * k + 3, for i from 0 to 3. */
typedef struct {
    int32_t out_h, runs, run_bytes;
    int32_t run_step;                   /* bytes between the windows of two runs */
    int32_t row_step;                   /* bytes between the windows of two rows */
    int32_t tap_step, tap_row;          /* bytes between two taps of a row, two rows of taps */
    int32_t out_row;                    /* bytes between two rows of the result */
    int32_t period;
    const int8_t *weight;               /* [period][rows of taps][fours of taps][4 vectors][16][4] */
    const int32_t *bias;                /* [period][4 vectors][16] */
    const float *scale;                 /* likewise: m / 2^16 */
#ifdef FIXED_POINT
    const int32_t *mantissa, *exponent; /* likewise, in TensorFlow Lite's arithmetic; NULL: none */
#endif
    uint8_t lo, hi;
    float zero;
    const int32_t *signed_bias; /* for activations less 128 */
} depthwise_params;

enum { STRIP_ROWS = 8 }; /* computed before the next block of 64 bytes, so that memory is read nearly in order */
