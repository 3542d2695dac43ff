/* One row of a convolution with Helium, equations (2) and (3); with a residual (2) and (7b). Tiles have three windows and two
 * channels. Windows at an edge are copied, and their taps outside the image filled with the zero point. */
typedef struct {
    int32_t in_h, in_w, in_c;
    int32_t out_h, out_w, out_c;
    int32_t kernel_h, kernel_w;
    int32_t stride_h, stride_w;
    int32_t dilation_h;
    int32_t pad_top, pad_left;
    int32_t in_zero;
    int32_t sixteens;     /* in a window, whose rows are filled up with zeros */
    const int8_t *weight; /* [out_c / 2, rounded up][sixteens][2][16] */
    const int32_t *bias;  /* [out_c, even], for activations that are less by 128 */
    int32_t residual_zero, residual_multiplier;
    int32_t clamp_bits; /* 0, or: sums may be clamped to this many bits */
    requantization to;
} conv2d_helium_params;

/* Write the sums of all channels of one window. A residual, if any, is at the same index. */
static WITH_HELIUM void helium_store(const conv2d_helium_params *p, uint8_t *y, const uint8_t *joins, const int32_t *sums)
{
    for (int32_t i = 0; i < p->out_c; i++) {
        if (p->to.multiplier == NULL) {
            memcpy(y + 4 * i, sums + i, 4);
            continue;
        }
#ifdef FIXED_POINT
        if (p->to.exponent != NULL) {
            y[i] = requantize_fixed(&p->to, sums[i], i);
            continue;
        }
#endif
        y[i] = requantize(&p->to, (int64_t)sums[i] * multiplier_of(&p->to, i) +
                                      (joins == NULL ? 0 : (int64_t)(joins[i] - p->residual_zero) * p->residual_multiplier));
    }
}

/* The same where sums may be clamped: larger ones give lo or hi in any case, and products of those that are left fit 32
 * bits. */
static WITH_HELIUM void helium_store_clamped(const conv2d_helium_params *p, uint8_t *y, const uint8_t *joins, const int32_t *sums)
{
    const int32_t limit = (int32_t)1 << (p->clamp_bits - 1), shift = p->to.shift;
    const int32_t almost_half = ((int32_t)1 << (shift - 1)) - 1, shared = -p->residual_zero * p->residual_multiplier;
    int32_t i = 0;

#if HAVE_HELIUM
    const int32x4_t lowest = vdupq_n_s32(-limit), highest = vdupq_n_s32(limit - 1), one = vdupq_n_s32(1);
    const int32x4_t lo = vdupq_n_s32(p->to.lo), hi = vdupq_n_s32(p->to.hi);
    const int32_t step = p->to.per_channel, zero = p->to.zero, residual = p->residual_multiplier;
    const int32_t *const multiplier = p->to.multiplier;

    for (; i + 4 <= p->out_c; i += 4) {
        int32x4_t value = vminq_s32(vmaxq_s32(vldrwq_s32(sums + i), lowest), highest);

        value = step ? vmulq_s32(value, vldrwq_s32(multiplier + i)) : vmulq_n_s32(value, *multiplier);
        if (joins != NULL)
            value = vaddq_n_s32(vmlaq_n_s32(value, vreinterpretq_s32_u32(vldrbq_u32(joins + i)), residual), shared);
        value = vaddq_s32(value, vandq_s32(vshlq_r_s32(value, -shift), one));
        value = vaddq_n_s32(vshlq_r_s32(vaddq_n_s32(value, almost_half), -shift), zero);
        vstrbq_u32(y + i, vreinterpretq_u32_s32(vminq_s32(vmaxq_s32(value, lo), hi)));
    }
#endif
    for (; i < p->out_c; i++) {
        int32_t value = (sums[i] < -limit ? -limit : sums[i] > limit - 1 ? limit - 1 : sums[i]) * multiplier_of(&p->to, i);

        if (joins != NULL)
            value += joins[i] * p->residual_multiplier + shared;
        value = p->to.zero + ((value + ((value >> shift) & 1) + almost_half) >> shift);
        y[i] = (uint8_t)(value < p->to.lo ? p->to.lo : value > p->to.hi ? p->to.hi : value);
    }
}

static void conv2d_helium_row(const conv2d_helium_params *p, const kept_rows *x, const kept_rows *residual, uint8_t *y,
                              int32_t row)
{
    const uint8_t *const joins = residual == NULL ? NULL : row_of(residual, row);
    const int32_t run = p->kernel_w * p->in_c, apart = p->stride_w * p->in_c, span = run + 2 * apart;
    const int32_t item = p->to.multiplier == NULL ? 4 : 1;
    uint8_t edge[HELIUM_EDGE_BYTES];
    int8_t taps[HELIUM_BYTES];
    int32_t sums[3 * HELIUM_CHANNELS];
    const uint8_t *inside[HELIUM_ROWS] = {NULL};

    for (int32_t k = 0; k < p->kernel_h; k++) {
        const int32_t in_row = row * p->stride_h - p->pad_top + k * p->dilation_h;

        inside[k] = in_row < 0 || in_row >= p->in_h ? NULL : row_of(x, in_row);
        if (inside[k] == NULL)
            memset(edge + k * span, p->in_zero, (size_t)span);
    }
    for (int32_t column = 0; column < p->out_w; column += 3) {
        const int32_t pixels = p->out_w - column < 3 ? p->out_w - column : 3;
        const int32_t left = column * p->stride_w - p->pad_left, width = p->kernel_w + 2 * p->stride_w;
        const int32_t before = left < 0 ? (-left < width ? -left : width) : 0;
        const int32_t beyond = left + width - p->in_w, after = beyond > 0 ? (beyond < width ? beyond : width) : 0;
        int8_t *to = taps;

        for (int32_t k = 0; k < p->kernel_h; k++) {
            uint8_t *const copy = edge + k * span;
            const uint8_t *from = copy;

            if (inside[k] != NULL && before + after == 0) {
                from = inside[k] + left * p->in_c;
            } else if (inside[k] != NULL) {
                memset(copy, p->in_zero, (size_t)span);
                if (before + after < width)
                    memcpy(copy + before * p->in_c, inside[k] + (left + before) * p->in_c,
                           (size_t)((width - before - after) * p->in_c));
            }
            helium_bytes(from, run, to, 48);
            helium_bytes(from + apart, run, to + 16, 48);
            to = helium_bytes(from + 2 * apart, run, to + 32, 48) - 32;
        }
        for (int32_t channel = 0; channel < p->out_c; channel += 2)
            helium_tile(taps, p->weight + 16 * channel * p->sixteens, p->sixteens, p->bias + channel, sums + channel,
                        HELIUM_CHANNELS);
        for (int32_t i = 0; i < pixels; i++) {
            const int32_t index = (column + i) * p->out_c;
            const uint8_t *const joined = joins == NULL ? NULL : joins + index;

            if (p->clamp_bits > 0)
                helium_store_clamped(p, y + index, joined, sums + i * HELIUM_CHANNELS);
            else
                helium_store(p, y + item * index, joined, sums + i * HELIUM_CHANNELS);
        }
    }
}
