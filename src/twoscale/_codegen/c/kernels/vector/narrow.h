/* What instruction sets with registers of 128 bits share: convolutions, linear layers and depthwise convolutions have kernels
 * of their own (NAME_narrow.c). Sixteen numbers are four quarters. */
#define NARROW /* kernels of their own */

#define EACH UNROLL for (int32_t i = 0; i < 4; i++)

/* The runs of a window: bytes that are neighbours in the image. */
typedef struct {
    int32_t runs, words;  /* each of so many words of four bytes */
    const int32_t *start; /* of every `step`-th run or word, in bytes after the window's first */
    int32_t step;
    int32_t stride; /* bytes between the weights of two words */
    const int8_t *arranged; /* weights in the order of the instruction set; NULL if they have no other order */
} window;

/* The number is a constant before functions are inlined, so that all compilers unroll the loop. */
#define EACH_PIXEL UNROLL for (int32_t n = 0; n < PIXELS; n++) if (n < pixels)
