/* One row of a depthwise convolution with the DSP extension, equations (2) and (3), four channels at a time. Taps outside the
 * image are read from a pixel of zero points. */
typedef struct {
    int32_t in_h, in_w, channels;
    int32_t out_h, out_w;
    int32_t kernel_h, kernel_w;
    int32_t stride_h, stride_w;
    int32_t pad_top, pad_left;
    int32_t dilation_h, dilation_w;
    int32_t in_zero;
    const int32_t *weight; /* [channels / 4, rounded up][taps][2]: of channels 0 and 2, and of 1 and 3 */
    const int32_t *bias;   /* [channels, rounded up], without in_zero times the sum of the channel's weights */
    int32_t clamp_bits;    /* 0, or HALVES_BITS: sums may be clamped to this many bits */
    requantization to;
} depthwise_halves_params;

#define DEPTHWISE_TAP \
    { \
        const uint32_t x = four_bytes(*taps++ + channel), even = x & mask, odd = x >> 8 & mask; \
        const int32_t v = w[0], u = w[1]; \
\
        w += 2; \
        sum0 += (int16_t)even * (int16_t)v; \
        sum1 += (int16_t)odd * (int16_t)u; \
        sum2 += (int32_t)(even >> 16) * (v >> 16); \
        sum3 += (int32_t)(odd >> 16) * (u >> 16); \
    }

/* The sums of four channels of one window. */
static IN_REGISTERS void depthwise_sums(const uint8_t *const *taps, int32_t count, int32_t channel, const int32_t *w,
                                        const int32_t *bias, int32_t sums[4])
{
    const uint8_t *const *const end = taps + count, *const *const most = end - count % 3;
    const uint32_t mask = even_bytes;
    int32_t sum0 = bias[0], sum1 = bias[1], sum2 = bias[2], sum3 = bias[3];

    while (taps != most) {
        DEPTHWISE_TAP
        DEPTHWISE_TAP
        DEPTHWISE_TAP
    }
    while (taps != end)
        DEPTHWISE_TAP
    sums[0] = sum0;
    sums[1] = sum1;
    sums[2] = sum2;
    sums[3] = sum3;
}

/* Write the sums of `count` channels. */
static void depthwise_store(const depthwise_halves_params *p, uint8_t *y, int32_t index, int32_t channel, int32_t count,
                            const int32_t sums[4])
{
    const int32_t zero_and_half = p->to.zero * 65536 + 0x7fff;

    if (p->clamp_bits == 0 || p->to.shift != 16) {
        for (int32_t i = 0; i < count; i++)
            store(&p->to, y, index + i, channel + i, sums[i]);
        return;
    }
    for (int32_t i = 0; i < count; i++) {
        int32_t value = clamped(sums[i], HALVES_BITS) * multiplier_of(&p->to, channel + i);

        HALVES_ROUND(value, 16)
        y[index + i] = (uint8_t)(value < p->to.lo ? p->to.lo : value > p->to.hi ? p->to.hi : value);
    }
}

static void depthwise_halves_row(const depthwise_halves_params *p, const kept_rows *x, uint8_t *y, int32_t row)
{
    const int32_t count = p->kernel_h * p->kernel_w, whole = p->channels & ~3;
    const uint8_t *taps[HALVES_TAPS] = {NULL}, *inside[HALVES_TAPS] = {NULL};
    uint8_t outside[HALVES_CHANNELS];

    memset(outside, p->in_zero, sizeof outside);
    for (int32_t k = 0; k < p->kernel_h; k++) {
        const int32_t in_row = row * p->stride_h - p->pad_top + k * p->dilation_h;

        inside[k] = in_row < 0 || in_row >= p->in_h ? NULL : row_of(x, in_row);
    }
    for (int32_t column = 0; column < p->out_w; column++) {
        const int32_t index = column * p->channels;
        const int32_t *w = p->weight;
        int32_t sums[4], tap = 0;

        for (int32_t k = 0; k < p->kernel_h; k++) {
            int32_t at = column * p->stride_w - p->pad_left;

            for (int32_t i = 0; i < p->kernel_w; i++, at += p->dilation_w)
                taps[tap++] = inside[k] == NULL || at < 0 || at >= p->in_w ? outside : inside[k] + at * p->channels;
        }
        for (int32_t channel = 0; channel < whole; channel += 4, w += 2 * count) {
            depthwise_sums(taps, count, channel, w, p->bias + channel, sums);
            depthwise_store(p, y, index + channel, channel, 4, sums);
        }
        if (whole < p->channels) { /* up to three channels, whose words would reach beyond the tensor */
            for (int32_t i = 0; i < 4; i++)
                sums[i] = p->bias[whole + i];
            for (tap = 0; tap < count; tap++, w += 2)
                for (int32_t i = 0; i < p->channels - whole; i++)
                    sums[i] += taps[tap][whole + i] * (i < 2 ? (int16_t)w[i] : w[0] >> 16);
            depthwise_store(p, y, index + whole, whole, p->channels - whole, sums);
        }
    }
}
