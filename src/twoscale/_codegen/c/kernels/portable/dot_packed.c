/* dot for packed weights of one channel of a pair, the second if `second` is 1. x[0] belongs to tap number `tap` of w. */
static int32_t dot_packed(const uint8_t *x, const int8_t *w, int32_t bits, int32_t tap, int32_t second, int32_t count,
                          int32_t zero)
{
    int32_t sum = 0;

    for (int32_t i = 0; i < count; i++, tap++) {
        const int32_t both = bits == 4 ? w[tap] : (tap & 1) != 0 ? w[tap >> 1] >> 4 : LOW_4(w[tap >> 1]);
        const int32_t u = bits == 4 ? LOW_4(both) : LOW_2(both), v = bits == 4 ? HIGH_4(both) : HIGH_2(both);

        sum += (x[i] - zero) * (second ? v : u);
    }
    return sum;
}
