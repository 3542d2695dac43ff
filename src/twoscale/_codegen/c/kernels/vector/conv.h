/* Convolution, equations (2) and (3); with a residual, which is added before rounding, (2) and (7b).
 *
 * A window is `segments` runs of 4 * `words` bytes, each `segment[i]` bytes after the window's first byte. Bytes of
 * the last word that belong to no tap have weights of 0. Weights of 4 or 2 bits are packed: the bytes of a word have those of
 * two or four successive words of the window, the first in the lowest bits, and a run has two or four times the bytes. Borders hold the zero point. Biases have the zero point times the
 * sum of the weights subtracted, so bytes are multiplied without subtracting it. */
typedef struct {
    int32_t out_h, out_w, out_c;
    int32_t segments;
    const int32_t *segment;
    int32_t words;
    int32_t row_step;                                /* bytes between the windows of two rows */
    int32_t out_row, out_pixel;                      /* bytes between two rows, two pixels of the result */
    int32_t residual_row, residual_pixel;            /* and of the residual */
    const int8_t *weight;                            /* [blocks][segments][words][channels of a block][4] */
    const int32_t *bias;
    const float *scale; /* m / 2^shift of each channel */
#ifdef FIXED_POINT
    const int32_t *mantissa, *exponent; /* of each channel, in TensorFlow Lite's arithmetic */
#endif
    uint8_t lo, hi;
    float zero;         /* with a residual: minus its zero point times its scale */
    float residual_scale;
    int32_t by_channels; /* threads share channels, not rows */
    /* Words sorted by arrangement, for instruction sets whose products of bytes may saturate: for each vector of channels
     * the number of words for each arrangement, then the words, which start `starts` bytes after the window. */
    const uint16_t *order;
    const int32_t *starts;
    /* For instruction sets that multiply matrices: words and pixels of a matrix, or 0 if they compute this layer as the
     * others do; and, if matrices reach across the ends of rows, the pixels from one row to the next. */
    int32_t matrix_words, matrix_pixels, row_pixels;
    int32_t run_words;          /* words of a run, of which `words` are listed together */
    const int32_t *signed_bias; /* for activations less 128 */
} conv_params;

/* The form of the results. */
enum { NUMBERS, BYTES, JOINED }; /* int32; bytes; bytes, after a residual is added */
#ifdef FIXED_POINT
enum { FIXED = JOINED + 1 }; /* bytes, by equation (18) */
#endif

enum { ARRANGEMENTS = 4 }; /* of the four bytes of a word; the last means that every arrangement could saturate */

enum {
    NEAR_BYTES = 16384,           /* weights of this size stay in the first-level cache */
    MATRICES_NEAR_BYTES = 131072, /* with matrices they may be read from the second-level cache */
};
