/* RNE(value / 2^shift) plus the zero point, as a byte; for constant shifts. */
#define HALVES_ROUND(value, shift) \
    { \
        value = (value + ((value >> (shift)) & 1) + zero_and_half) >> (shift); \
        value = value < 0 ? 0 : value; \
        value = value > 255 ? 255 : value; \
    }
