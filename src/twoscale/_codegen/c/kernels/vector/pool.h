/* The windows of a pool. Rows need not be adjacent. */
typedef struct {
    int32_t in_h, in_w, channels;
    int32_t out_h, out_w;
    int32_t kernel_h, kernel_w;
    int32_t stride_h, stride_w;
    int32_t dilation_h, dilation_w;
    int32_t pad_top, pad_left;
    int32_t in_row, out_row; /* bytes between rows */
    int32_t in_zero;
    float scale, lo, hi; /* averages: m / 2^16, and bounds relative to the zero point; scale 0: the output is int32 */
    int32_t zero;
} pool_params;
