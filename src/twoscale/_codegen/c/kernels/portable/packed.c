/* Packed weights. The weights u and v of a pair of channels for one tap are one number: at 4 bits 16 * v + u in a byte, at
 * 2 bits 4 * v + u in half a byte, the first of two taps in the low half. What is missing in a pair of channels, or of
 * taps at the end of a row, is 0. */
#define LOW_4(byte) ((int8_t)((uint32_t)(byte) << 4) >> 4)
#define HIGH_4(byte) (((byte) + 8) >> 4)
#define LOW_2(half) ((int8_t)((uint32_t)(half) << 6) >> 6)
#define HIGH_2(half) (((half) + 2) >> 2)
