/* The same where products with multipliers, and their sums, fit 32 bits. */
static void add_narrow(const add_params *p, const uint8_t *a, const uint8_t *b, uint8_t *y)
{
    for (int32_t i = 0; i < p->count; i++)
        y[i] = requantize_narrow(&p->to,
                                 (a[i] - p->a_zero) * p->a_multiplier + (b[i] - p->b_zero) * p->b_multiplier);
}
