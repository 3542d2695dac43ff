/* RNE(numerator / denominator); the denominator is positive, and both are below 2^62. */
static int64_t rne_ratio(int64_t numerator, int64_t denominator)
{
    const int64_t floor = numerator / denominator - (numerator % denominator < 0);
    const int64_t twice = 2 * (numerator - floor * denominator);

    return floor + (twice > denominator || (twice == denominator && floor % 2 != 0));
}
