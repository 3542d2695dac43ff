/* Convolution, equations (2) and (3); with a residual, which joins before rounding, (2) and (7b).
 * Taps outside the image hold the zero point, so they add nothing and are left out. */
typedef struct {
    int32_t in_h, in_w, in_c;
    int32_t out_h, out_w, out_c;
    int32_t kernel_h, kernel_w;
    int32_t stride_h, stride_w;
    int32_t dilation_h, dilation_w;
    int32_t pad_top, pad_left;
    int32_t groups;
    int32_t in_zero;
    const int8_t *weight; /* [out_c][kernel_h][kernel_w][in_c / groups] */
    const int32_t *bias;  /* [out_c] */
    int32_t residual_zero, residual_multiplier;
    requantization to;
} conv2d_params;

/* The accumulator of one output channel for the window whose first tap is at (top, left).
 * Taps that are neighbours in memory, as a row of an undilated window is, make one long dot product. */
static int32_t conv2d_window(const conv2d_params *p, const uint8_t *x, int32_t top, int32_t left, int32_t channel)
{
    const int32_t group_in = p->in_c / p->groups;
    const int32_t group = channel / (p->out_c / p->groups);
    const int32_t joined = p->groups == 1 && p->dilation_w == 1;
    int32_t acc = p->bias[channel];
    int32_t first = 0, end = p->kernel_w; /* the taps of a row that are inside the image */

    while (first < end && left + first * p->dilation_w < 0)
        first++;
    while (first < end && left + (end - 1) * p->dilation_w >= p->in_w)
        end--;
    for (int32_t ky = 0; ky < p->kernel_h; ky++) {
        const int32_t row = top + ky * p->dilation_h;
        const int8_t *w = p->weight + (channel * p->kernel_h + ky) * p->kernel_w * group_in;

        if (row < 0 || row >= p->in_h)
            continue;
        for (int32_t kx = first; kx < end; kx += joined ? end - first : 1) {
            const int32_t column = left + kx * p->dilation_w;
            const int32_t count = joined ? (end - first) * group_in : group_in;

            acc += dot(x + (row * p->in_w + column) * p->in_c + group * group_in, w + kx * group_in, count, p->in_zero);
        }
    }
    return acc;
}

static void conv2d(const conv2d_params *p, const uint8_t *x, const uint8_t *residual, uint8_t *y)
{
    int32_t index = 0;

    for (int32_t row = 0; row < p->out_h; row++) {
        for (int32_t column = 0; column < p->out_w; column++) {
            for (int32_t channel = 0; channel < p->out_c; channel++, index++) {
                const int32_t top = row * p->stride_h - p->pad_top;
                const int32_t left = column * p->stride_w - p->pad_left;
                const int32_t acc = conv2d_window(p, x, top, left, channel);

                if (residual == NULL) {
                    store(&p->to, y, index, channel, acc);
                } else {
                    const int64_t scaled = (int64_t)acc * multiplier_of(&p->to, channel);
                    const int32_t shifted = residual[index] - p->residual_zero;

                    y[index] = requantize(&p->to, scaled + (int64_t)shifted * p->residual_multiplier);
                }
            }
        }
    }
}
