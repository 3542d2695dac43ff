/* What instruction sets with registers of 128 bits share: convolutions, linear layers and depthwise convolutions have kernels
 * of their own (NAME_narrow.c). */
#define NARROW /* kernels of their own */

/* The runs of a window: bytes that are neighbours in the image. */
typedef struct {
    int32_t runs, words;  /* each of so many words of four bytes, those whose weights are packed together counted once */
    const int32_t *start; /* of every `step`-th run or word, in bytes after the window's first */
    int32_t step;
    int32_t stride; /* bytes between the weights of two words */
    const int8_t *arranged; /* weights in the order of the instruction set; NULL if they have no other order */
    int32_t small; /* whether all weights fit 4 bits */
} window;

/* The words of a run. */
#define WORDS(at, bits) ((at)->words * (8 / (bits)))
/* Which of the words that are packed together has a lane, and whether it is the last of them. */
#define PART(lane, bits) ((lane) % (8 / (bits)))
#define ENDS_WORD(lane, bits) (PART(lane, bits) == 8 / (bits) - 1)

/* The number is a constant before functions are inlined, so that all compilers unroll the loop. */
#define EACH_PIXEL UNROLL for (int32_t n = 0; n < PIXELS; n++) if (n < pixels)

INLINE v16b clamp_b(v16b a, v16b lo, v16b hi)
{
    return MIN_B(MAX_B(a, lo), hi);
}

INLINE INT_PART four_i(const int32_t *from)
{
    return LOAD_I(from);
}

INLINE FLOAT_PART four_f(const float *from)
{
    return LOAD_F(from);
}

/* Weights of four taps of four channels. */
INLINE WEIGHTS tap_weights(const int8_t *from)
{
    return LOAD_WEIGHTS(from);
}

typedef struct {
    v16b at[4];
} interleaved;

/* Sixteen bytes of each of four places, `step` bytes apart, side by side. */
INLINE interleaved interleave(const uint8_t *from, int32_t step)
{
    const v16b a = LOAD_B(from), b = LOAD_B(from + step), c = LOAD_B(from + 2 * step), d = LOAD_B(from + 3 * step);
    const v16b ab_lo = LOW_8(a, b), ab_hi = HIGH_8(a, b), cd_lo = LOW_8(c, d), cd_hi = HIGH_8(c, d);
    const interleaved all = {{LOW_16(ab_lo, cd_lo), HIGH_16(ab_lo, cd_lo), LOW_16(ab_hi, cd_hi), HIGH_16(ab_hi, cd_hi)}};

    return all;
}
