/* Maximum over windows, one row after the other. */
static void max_pool2d_helium(const max_pool2d_params *p, const uint8_t *x, uint8_t *y)
{
    const kept_rows from = {x, p->in_h, p->in_w * p->channels};

    for (int32_t row = 0; row < p->out_h; row++)
        max_pool2d_helium_row(p, &from, y + row * p->out_w * p->channels, row);
}
