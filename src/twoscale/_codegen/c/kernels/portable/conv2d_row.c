/* One row of any convolution, equations (2) and (3); with a residual, which is added before rounding, (2) and (7b).
 * Taps outside the image hold the zero point, so they add nothing and are left out. */

/* The accumulator of one output channel for the window whose first tap is at column `left`. Taps first_ky..end_ky - 1
 * of a column are inside the image, and the first of them is in the kept row number `slot`.
 * Taps next to each other in memory, as in a row of an undilated window, are one long dot product. */
static int32_t conv2d_window(const conv2d_params *p, const kept_rows *x, int32_t first_ky, int32_t end_ky, int32_t slot,
                             int32_t left, int32_t channel)
{
    const int32_t group_in = p->in_c / p->groups, run = p->kernel_w * group_in;
    const int32_t group = channel / (p->out_c / p->groups);
    const int32_t joined = p->groups == 1 && p->dilation_w == 1;
    int32_t acc = p->bias[channel];
    int32_t first = 0, end = p->kernel_w; /* the taps of a row that are inside the image */

    while (first < end && left + first * p->dilation_w < 0)
        first++;
    while (first < end && left + (end - 1) * p->dilation_w >= p->in_w)
        end--;
    for (int32_t ky = first_ky; ky < end_ky; ky++) {
        const uint8_t *row = x->first + slot * x->bytes;
        const int8_t *w = p->weight + (channel * p->kernel_h + ky) * run;

#ifdef DOT_PACKED
        if (p->weight_bits != 0)
            w = p->weight + (channel / 2 * p->kernel_h + ky) * (p->weight_bits == 4 ? run : (run + 1) / 2);
#endif
        for (int32_t kx = first; kx < end; kx += joined ? end - first : 1) {
            const uint8_t *const from = row + (left + kx * p->dilation_w) * p->in_c + group * group_in;
            const int32_t count = joined ? (end - first) * group_in : group_in;

#ifdef DOT_PACKED
            if (p->weight_bits != 0) {
                acc += dot_packed(from, w, p->weight_bits, kx * group_in, channel & 1, count, p->in_zero);
                continue;
            }
#endif
            acc += dot(from, w + kx * group_in, count, p->in_zero);
        }
        for (slot += p->dilation_h; slot >= x->kept;)
            slot -= x->kept;
    }
    return acc;
}

static void conv2d_row(const conv2d_params *p, const kept_rows *x, const kept_rows *residual, uint8_t *y, int32_t row)
{
    const uint8_t *joins = residual == NULL ? NULL : row_of(residual, row);
    const int32_t top = row * p->stride_h - p->pad_top;
    int32_t first = 0, end = p->kernel_h; /* the taps of a column that are inside the image */
    int32_t start, index = 0;

    while (first < end && top + first * p->dilation_h < 0)
        first++;
    while (first < end && top + (end - 1) * p->dilation_h >= p->in_h)
        end--;
    start = first < end ? (top + first * p->dilation_h) % x->kept : 0;
    for (int32_t column = 0; column < p->out_w; column++) {
        for (int32_t channel = 0; channel < p->out_c; channel++, index++) {
            const int32_t left = column * p->stride_w - p->pad_left;
            const int32_t acc = conv2d_window(p, x, first, end, start, left, channel);

            if (joins == NULL) {
                store(&p->to, y, index, channel, acc);
            } else {
                const int64_t scaled = (int64_t)acc * multiplier_of(&p->to, channel);
                const int32_t shifted = joins[index] - p->residual_zero;

                y[index] = requantize(&p->to, scaled + (int64_t)shifted * p->residual_multiplier);
            }
        }
    }
}
