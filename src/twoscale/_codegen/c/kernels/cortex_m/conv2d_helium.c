/* Convolution with Helium, one row after the other. */
static void conv2d_helium(const conv2d_helium_params *p, const uint8_t *x, const uint8_t *residual, uint8_t *y)
{
    const int32_t y_bytes = p->out_w * p->out_c * (p->to.multiplier == NULL ? 4 : 1);
    const kept_rows from = {x, p->in_h, p->in_w * p->in_c};
    const kept_rows joins = {residual, p->out_h, y_bytes};

    for (int32_t row = 0; row < p->out_h; row++)
        conv2d_helium_row(p, &from, residual == NULL ? NULL : &joins, y + row * y_bytes, row);
}
