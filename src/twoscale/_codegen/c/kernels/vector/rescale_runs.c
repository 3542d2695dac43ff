/* Convert numbers to another scale, equation (3) with acc = q - z. */
static void rescale_runs(const rescale_runs_params *p, const uint8_t *x, uint8_t *y, int32_t count)
{
    const v16f scale = set_f(p->scale), lo = set_f(p->lo), hi = set_f(p->hi);
    const v16i in_zero = set_i(-p->in_zero), zero = set_i(p->zero);

    for (int32_t n = 0; n < count; n++, x += IMAGE_BYTES, y += IMAGE_BYTES) {
        for (int32_t k = 0; k < p->outer; k++) {
            for (int32_t i = 0; i < p->run; i += 16) {
                const v16f real = mul(to_f(add_i(load_u8(x + k * p->run + i, 16), in_zero)), scale);

                store_u8(y + k * p->y_step + i, add_i(round_f(clamp_f(real, lo, hi)), zero), p->run - i);
            }
        }
    }
}
