/* One row of a depthwise convolution with Helium, equations (2) and (3), eight channels at a time. Taps outside the image are
 * read from a pixel of zero points. */
typedef struct {
    int32_t in_h, in_w, channels; /* a multiple of 8 */
    int32_t out_h, out_w;
    int32_t kernel_h, kernel_w;
    int32_t stride_h, stride_w;
    int32_t pad_top, pad_left;
    int32_t dilation_h, dilation_w;
    int32_t in_zero;
    const int8_t *weight;    /* [channels / 8][taps][8] */
    const int32_t *each;     /* [channels / 8][2][2][4]: biases, without in_zero times the sum of the channel's weights, and
                              * multipliers in units of 2^-16; of even channels, then of odd ones */
    int32_t clamp_bits;      /* to which sums may be clamped so that products fit 32 bits; 0: all fit */
    int32_t zero, lo, hi;
} depthwise_helium_params;

/* Eight channels of one window. */
static WITH_HELIUM void depthwise_eight(const depthwise_helium_params *p, const uint8_t *const *taps, const int8_t *w,
                                        const int32_t *each, int32_t channel, uint8_t *y)
{
    const uint8_t *const *const end = taps + p->kernel_h * p->kernel_w;
    const int32_t limit = p->clamp_bits > 0 ? (int32_t)1 << (p->clamp_bits - 1) : INT32_MAX;

#if HAVE_HELIUM
    int32x4_t a = vldrwq_s32(each), b = vldrwq_s32(each + 4);
    int16x8_t value;

    for (; taps != end; taps++, w += 8) {
        const int16x8_t x = vreinterpretq_s16_u16(vldrbq_u16(*taps + channel)), u = vldrbq_s16(w);

        a = vaddq_s32(a, vmullbq_int_s16(x, u));
        b = vaddq_s32(b, vmulltq_int_s16(x, u));
    }
    if (p->clamp_bits > 0) {
        const int32x4_t lowest = vdupq_n_s32(-limit), highest = vdupq_n_s32(limit - 1);

        a = vminq_s32(vmaxq_s32(a, lowest), highest);
        b = vminq_s32(vmaxq_s32(b, lowest), highest);
    }
    value = helium_rounded(vmulq_s32(a, vldrwq_s32(each + 8)), vmulq_s32(b, vldrwq_s32(each + 12)), p->zero);
    value = vminq_s16(vmaxq_s16(value, vdupq_n_s16((int16_t)p->lo)), vdupq_n_s16((int16_t)p->hi));
    vstrbq_u16(y + channel, vreinterpretq_u16_s16(value));
#else
    for (int32_t i = 0; i < 8; i++) {
        const int32_t place = 4 * (i & 1) + (i >> 1);
        int32_t sum = each[place];

        for (int32_t tap = 0; taps + tap != end; tap++)
            sum += taps[tap][channel + i] * w[8 * tap + i];
        sum = sum < -limit ? -limit : sum > limit - 1 ? limit - 1 : sum;
        sum *= each[8 + place];
        sum = p->zero + ((sum + ((sum >> 16) & 1) + 0x7fff) >> 16);
        y[channel + i] = (uint8_t)(sum < p->lo ? p->lo : sum > p->hi ? p->hi : sum);
    }
#endif
}

static void depthwise_helium_row(const depthwise_helium_params *p, const kept_rows *x, uint8_t *y, int32_t row)
{
    const int32_t count = p->kernel_h * p->kernel_w;
    const uint8_t *taps[HELIUM_TAPS] = {NULL};
    uint8_t outside[HELIUM_OUTSIDE];

    memset(outside, p->in_zero, sizeof outside);
    for (int32_t column = 0; column < p->out_w; column++, y += p->channels) {
        const int8_t *w = p->weight;
        const int32_t *each = p->each;
        int32_t tap = 0;

        for (int32_t k = 0; k < p->kernel_h; k++) {
            const int32_t in_row = row * p->stride_h - p->pad_top + k * p->dilation_h;
            const uint8_t *const inside = in_row < 0 || in_row >= p->in_h ? NULL : row_of(x, in_row);
            int32_t at = column * p->stride_w - p->pad_left;

            for (int32_t i = 0; i < p->kernel_w; i++, at += p->dilation_w)
                taps[tap++] = inside == NULL || at < 0 || at >= p->in_w ? outside : inside + at * p->channels;
        }
        for (int32_t channel = 0; channel < p->channels; channel += 8, w += 8 * count, each += 16)
            depthwise_eight(p, taps, w, each, channel, y);
    }
}
