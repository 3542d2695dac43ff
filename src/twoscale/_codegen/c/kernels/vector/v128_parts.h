/* Registers of 128 bits: WebAssembly. */
typedef v128_t v16b;

#define PARTS 4
#define INT_PART v128_t
#define FLOAT_PART v128_t
#define SET_I(value) wasm_i32x4_splat(value)
#define LOAD_I(from) wasm_v128_load(from)
#define STORE_I(to, a) wasm_v128_store(to, a)
#define ADD_I(a, b) wasm_i32x4_add(a, b)
#define OR_I(a, b) wasm_v128_or(a, b)
#define SHIFT_I(a, bits) wasm_i32x4_shl(a, (uint32_t)(bits))
#define SET_F(value) wasm_f32x4_splat(value)
#define LOAD_F(from) wasm_v128_load(from)
#define TO_F(a) wasm_f32x4_convert_i32x4(a)
#define MUL_F(a, b) wasm_f32x4_mul(a, b)
#ifdef FOR_SIMD128
#define MUL_ADD_F(a, b, c) wasm_f32x4_add(wasm_f32x4_mul(a, b), c)
#else
#define MUL_ADD_F(a, b, c) wasm_f32x4_relaxed_madd(a, b, c)
#endif
#define DIV_F(a, b) wasm_f32x4_div(a, b)
#define MIN_F(a, b) wasm_f32x4_pmin(a, b)
#define MAX_F(a, b) wasm_f32x4_pmax(a, b)
/* 1.5 * 2^23 is added, whose last bit is 1, and its bits are subtracted. */
#define ROUND_F(a) wasm_i32x4_sub(wasm_f32x4_add(a, wasm_f32x4_splat(12582912.0f)), wasm_f32x4_splat(12582912.0f))
#define LOAD_B(from) wasm_v128_load(from)
#define STORE_B(to, a) wasm_v128_store(to, a)
#define SET_B(value) wasm_u8x16_splat(value)
#define MIN_B(a, b) wasm_u8x16_min(a, b)
#define MAX_B(a, b) wasm_u8x16_max(a, b)
#define WEIGHTS v128_t
#define LOAD_WEIGHTS(from) wasm_v128_load(from)
#define LOW_8(a, b) wasm_i8x16_shuffle(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23)
#define HIGH_8(a, b) wasm_i8x16_shuffle(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31)
#define LOW_16(a, b) wasm_i16x8_shuffle(a, b, 0, 8, 1, 9, 2, 10, 3, 11)
#define HIGH_16(a, b) wasm_i16x8_shuffle(a, b, 4, 12, 5, 13, 6, 14, 7, 15)
