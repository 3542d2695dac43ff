/* Write the outputs of tiles, `apart` bytes apart, from sums[tile][pair of channels][channel][window]. A residual, if any, has
 * the same form. */
static void helium_store(const conv2d_helium_params *p, const int32_t *sums, int32_t tiles, uint8_t *y, const uint8_t *joins,
                         int32_t apart)
{
    for (; tiles > 0; tiles--, y += 4 * apart) {
        for (int32_t channel = 0; channel < p->out_c; channel += 2) {
            for (int32_t i = 0; i < 8; i++, sums++) {
                const int32_t at = channel + (i >> 2), place = (i & 3) * apart + at;
                const int32_t sum = *sums + p->channels[2 * channel + (i >> 2)];

                if (p->to.multiplier == NULL) {
                    memcpy(y + (i & 3) * apart + 4 * at, &sum, 4);
                    continue;
                }
                if (at >= p->out_c) {
                    y[place] = 0;
                    continue;
                }
#ifdef FIXED_POINT
                if (p->to.exponent != NULL) {
                    y[place] = requantize_fixed(&p->to, sum, at);
                    continue;
                }
#endif
                y[place] = requantize(&p->to, (int64_t)sum * (p->in_halves ? p->channels[2 * channel + 2 + (i >> 2)]
                                                                          : multiplier_of(&p->to, at)) +
                                                  (joins == NULL ? 0 : (int64_t)(joins[place] - p->residual_zero) *
                                                                           p->residual_multiplier));
            }
        }
        if (joins != NULL)
            joins += 4 * apart;
    }
}

#if HAVE_HELIUM
/* The same for layers in halves. What is constant where this is inlined: whether sums are clamped to clamp_bits, and whether
 * there is a residual. */
static INLINED void helium_store_pairs(const conv2d_helium_params *p, const int32_t *sums, int32_t tiles, uint8_t *y,
                                       const uint8_t *joins, int32_t apart, int32_t clamps, int32_t adds)
{
    const uint16x8_t lanes = vidupq_n_u16(0, 1);
    const uint16x8_t places = vmlaq_n_u16(vandq_u16(lanes, vdupq_n_u16(1)), vshrq_n_u16(lanes, 1), (uint16_t)apart);
    const int16x8_t lo = vdupq_n_s16((int16_t)p->to.lo), hi = vdupq_n_s16((int16_t)p->to.hi);
    const int32_t zero = p->to.zero, beyond = 32 - p->clamp_bits;
    const int32_t residual_multiplier = p->residual_multiplier;
    const uint16_t residual_zero = (uint16_t)p->residual_zero;
    const int32_t pairs = (p->out_c + 1) >> 1;

    do {
        const int32_t *channel = p->channels;
        uint8_t *to = y;

        for (int32_t pair = 0; pair < pairs; pair++) {
            const int32_t bias_a = channel[0], bias_b = channel[1], of_a = channel[2], of_b = channel[3];
            int32x4_t a = vaddq_n_s32(vldrwq_s32(sums), bias_a), b = vaddq_n_s32(vldrwq_s32(sums + 4), bias_b);
            int16x8_t value;

            if (clamps) {
                a = vshlq_r_s32(vqshlq_r_s32(a, beyond), -beyond);
                b = vshlq_r_s32(vqshlq_r_s32(b, beyond), -beyond);
            }
            a = vmulq_n_s32(a, of_a);
            b = vmulq_n_s32(b, of_b);
            if (adds) {
                const int16x8_t joined =
                    vreinterpretq_s16_u16(vsubq_n_u16(vldrbq_gather_offset_u16(joins, places), residual_zero));

                a = vmlaq_n_s32(a, vmovlbq_s16(joined), residual_multiplier);
                b = vmlaq_n_s32(b, vmovltq_s16(joined), residual_multiplier);
                joins += 2;
            }
            value = vminq_s16(vmaxq_s16(helium_rounded(a, b, zero), lo), hi);
            vstrbq_scatter_offset_u16(to, places, vreinterpretq_u16_s16(value));
            to += 2;
            sums += 8;
            channel += 4;
        }
        y += 4 * apart;
        if (adds)
            joins += 3 * apart;
    } while (--tiles > 0);
}

static STORES_WITH_HELIUM void helium_store_halves(const conv2d_helium_params *p, const int32_t *sums, int32_t tiles,
                                                   uint8_t *y, const uint8_t *joins, int32_t apart)
{
    if (p->clamp_bits == 0 && joins == NULL)
        helium_store_pairs(p, sums, tiles, y, joins, apart, 0, 0);
    else if (p->clamp_bits == 0)
        helium_store_pairs(p, sums, tiles, y, joins, apart, 0, 1);
    else if (joins == NULL)
        helium_store_pairs(p, sums, tiles, y, joins, apart, 1, 0);
    else
        helium_store_pairs(p, sums, tiles, y, joins, apart, 1, 1);
}

#define HELIUM_STORE(p, sums, tiles, y, joins, apart) \
    ((p)->in_halves ? helium_store_halves(p, sums, tiles, y, joins, apart) : helium_store(p, sums, tiles, y, joins, apart))
#else
#define HELIUM_STORE helium_store
#endif
