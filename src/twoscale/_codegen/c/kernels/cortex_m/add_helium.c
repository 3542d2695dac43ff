/* The sum of two tensors, equation (7b), eight bytes at a time with Helium. Multipliers are in units of 2^-14, and products in
 * units of 2^-16 fit 32 bits. The result may take the place of a or b. */
static WITH_HELIUM void add_helium(const add_params *p, const uint8_t *a, const uint8_t *b, uint8_t *y)
{
    int32_t i = 0;

#if HAVE_HELIUM
    const int32_t of_a = 4 * p->a_multiplier, of_b = 4 * p->b_multiplier;
    const int16x8_t lo = vdupq_n_s16((int16_t)p->to.lo), hi = vdupq_n_s16((int16_t)p->to.hi);

    for (; i + 8 <= p->count; i += 8) {
        const int16x8_t u = vsubq_n_s16(vreinterpretq_s16_u16(vldrbq_u16(a + i)), (int16_t)p->a_zero);
        const int16x8_t v = vsubq_n_s16(vreinterpretq_s16_u16(vldrbq_u16(b + i)), (int16_t)p->b_zero);
        const int32x4_t even = vmlaq_n_s32(vmulq_n_s32(vmovlbq_s16(u), of_a), vmovlbq_s16(v), of_b);
        const int32x4_t odd = vmlaq_n_s32(vmulq_n_s32(vmovltq_s16(u), of_a), vmovltq_s16(v), of_b);
        const int16x8_t sum = vminq_s16(vmaxq_s16(helium_rounded(even, odd, p->to.zero), lo), hi);

        vstrbq_u16(y + i, vreinterpretq_u16_s16(sum));
    }
#endif
    for (; i < p->count; i++)
        y[i] = requantize_narrow(&p->to,
                                 (a[i] - p->a_zero) * p->a_multiplier + (b[i] - p->b_zero) * p->b_multiplier);
}
