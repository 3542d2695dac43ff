/* Sum of two tensors, equation (7). The result may take the place of either. */
static void add(const add_params *p, const uint8_t *a, const uint8_t *b, uint8_t *y)
{
    for (int32_t i = 0; i < p->count; i++)
        y[i] = requantize(&p->to, (int64_t)(a[i] - p->a_zero) * p->a_multiplier +
                                      (int64_t)(b[i] - p->b_zero) * p->b_multiplier);
}
