/* Convolution with Helium, one row after the other. */
static void conv2d_helium(const conv2d_helium_params *p, const uint8_t *x, const uint8_t *residual, uint8_t *y)
{
    const int32_t y_bytes = p->out_w * p->out_c * (p->to.multiplier == NULL ? 4 : 1);
    const kept_rows from = {x, p->in_h, p->in_w * p->in_c};
    helium_rows kept;

    helium_begin(p, 0, &kept);
    for (int32_t row = 0; row < p->out_h; row++)
        conv2d_helium_kept(p, &from, residual == NULL ? NULL : residual + row * y_bytes, y + row * y_bytes, row, &kept);
}
