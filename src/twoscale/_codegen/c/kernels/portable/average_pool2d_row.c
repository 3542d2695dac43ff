/* One row of means over windows, equations (8) and (3): the multiplier divides by the size of the window.
 * Taps outside the image hold the zero point, so they add nothing and are left out. */
typedef struct {
    int32_t in_h, in_w, channels;
    int32_t out_h, out_w;
    int32_t kernel_h, kernel_w;
    int32_t stride_h, stride_w;
    int32_t pad_top, pad_left;
    int32_t in_zero;
#ifdef FIXED_POINT
    int32_t divides; /* 1: divide by the number of taps inside the image, ties away from zero, equation (20) */
#endif
    requantization to;
} average_pool2d_params;

static void average_pool2d_row(const average_pool2d_params *p, const kept_rows *x, uint8_t *y, int32_t row)
{
    int32_t index = 0;

    for (int32_t out_column = 0; out_column < p->out_w; out_column++) {
        for (int32_t channel = 0; channel < p->channels; channel++, index++) {
            int32_t acc = 0;
#ifdef FIXED_POINT
            int32_t taps = 0;
#endif

            for (int32_t ky = 0; ky < p->kernel_h; ky++) {
                const int32_t in_row = row * p->stride_h - p->pad_top + ky;

                if (in_row < 0 || in_row >= p->in_h)
                    continue;
                for (int32_t kx = 0; kx < p->kernel_w; kx++) {
                    const int32_t column = out_column * p->stride_w - p->pad_left + kx;

#ifdef FIXED_POINT
                    taps += column >= 0 && column < p->in_w;
#endif
                    if (column >= 0 && column < p->in_w)
                        acc += row_of(x, in_row)[column * p->channels + channel] - p->in_zero;
                }
            }
#ifdef FIXED_POINT
            if (p->divides) {
                const int32_t q = p->to.zero + (acc > 0 ? acc + taps / 2 : acc - taps / 2) / taps;

                y[index] = (uint8_t)(q < p->to.lo ? p->to.lo : q > p->to.hi ? p->to.hi : q);
                continue;
            }
#endif
            store(&p->to, y, index, 0, acc);
        }
    }
}
