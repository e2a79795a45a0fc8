// Numbers of a record: fp32, fp16, bf16, or whole numbers with a step and an offset.
#pragma once
#include "table.h"

namespace {

// Vectors and instructions by the compiler's own names: its header of all of them takes longer to read than this.
typedef int16_t Halves __attribute__((vector_size(16)));
typedef int32_t Words __attribute__((vector_size(32)));
typedef float Floats __attribute__((vector_size(32)));

inline float from_bits(uint32_t bits) {
  float number;
  std::memcpy(&number, &bits, sizeof number);
  return number;
}

inline float half_at(const char* place) {
  uint16_t half;
  std::memcpy(&half, place, sizeof half);
#if defined(__F16C__)
  return __builtin_ia32_vcvtph2ps(Halves{int16_t(half), 0, 0, 0, 0, 0, 0, 0})[0];
#else
  // Exponent and fraction of fp16 in fp32's places are the number times 2**-112; that of infinities is all ones.
  const uint32_t sign = uint32_t(half & 0x8000u) << 16;
  const float number = from_bits(uint32_t(half & 0x7FFFu) << 13) * from_bits(0x77800000u);
  uint32_t bits;
  std::memcpy(&bits, &number, sizeof bits);
  return from_bits(sign | ((half & 0x7C00u) == 0x7C00u ? bits | 0x7F800000u : bits));
#endif
}

#if NUMBERS > 0 && 8 % NUMBERS == 0
// Eight codes that begin with a byte. Both words are one, but for those of 8 bits.
inline Words eight_codes(const char* held) {
  int32_t a = 0;
  std::memcpy(&a, held, NUMBERS < 4 ? NUMBERS : 4);
  int32_t b = a;
#if NUMBERS == 8
  std::memcpy(&b, held + 4, 4);
  const Words shifts = {0, 8, 16, 24, 0, 8, 16, 24};
#else
  const Words shifts = {0, NUMBERS, 2 * NUMBERS, 3 * NUMBERS, 4 * NUMBERS, 5 * NUMBERS, 6 * NUMBERS, 7 * NUMBERS};
#endif
  return (Words{a, a, a, a, b, b, b, b} >> shifts) & ((1 << NUMBERS) - 1);
}
#endif

// The numbers of a record.
inline void decode(const Table& table, uint64_t row, float* __restrict__ out) {
  const char* held = table.numbers + row * STRIDE_BITS / 8;
#if NUMBERS == 32
  std::memcpy(out, held, WIDTH * sizeof(float));
#elif NUMBERS == 16
  int64_t i = 0;
#if defined(__F16C__)
  for (; i + 8 <= WIDTH; i += 8) {
    Halves halves;
    std::memcpy(&halves, held + 2 * i, sizeof halves);
    const Floats floats = __builtin_ia32_vcvtph2ps256(halves);
    std::memcpy(out + i, &floats, sizeof floats);
  }
#endif
  for (; i < WIDTH; ++i) out[i] = half_at(held + 2 * i);
#elif NUMBERS == -16
  for (int64_t i = 0; i < WIDTH; ++i) {
    uint16_t upper;
    std::memcpy(&upper, held + 2 * i, sizeof upper);
    out[i] = from_bits(uint32_t(upper) << 16);
  }
#else
  // Codes of 8 bits times steps of 11 are exact in fp32, so it is the same in one rounding and in two.
  const uint64_t at = row / GROUP * SCALE_STRIDE_BYTES;
  const float step = half_at(table.steps + at), offset = half_at(table.offsets + at);
#if STRIDE_BITS % 8 == 0 && 8 % NUMBERS == 0
  int64_t i = 0;
  for (; i + 8 <= WIDTH; i += 8) {
    const Floats floats = __builtin_convertvector(eight_codes(held + i * NUMBERS / 8), Floats) * step + offset;
    std::memcpy(out + i, &floats, sizeof floats);
  }
  for (; i < WIDTH; ++i) {
    const uint8_t byte = held[i * NUMBERS / 8];
    out[i] = float((byte >> (i * NUMBERS % 8)) & ((1 << NUMBERS) - 1)) * step + offset;
  }
#else
  const uint8_t* codes = reinterpret_cast<const uint8_t*>(held);
  const uint64_t first = row * STRIDE_BITS % 8;
  for (int64_t i = 0; i < WIDTH; ++i) {
    const uint64_t bit = first + i * NUMBERS;
    uint32_t found = codes[bit / 8];
    if (bit % 8 + NUMBERS > 8) found |= uint32_t(codes[bit / 8 + 1]) << 8;  // else there may be no such byte
    out[i] = float((found >> (bit % 8)) & ((1 << NUMBERS) - 1)) * step + offset;
  }
#endif
#endif
}

// Asks the memory for a record; they begin at a multiple of what they are long, as a bundle's do, or may begin in one
// line of the cache and end in the next.
inline void ask_record(const Table& table, uint64_t record) {
  const char* held = table.numbers + record * STRIDE_BITS / 8;
  constexpr int64_t NBYTES = (STRIDE_BITS + 7) / 8;
  constexpr int64_t ASKED = NBYTES < 1024 ? NBYTES : 1024;  // the processor fetches the rest of long rows by itself
  for (int64_t at = 0; at < ASKED; at += 64) __builtin_prefetch(held + at);
  if (ASKED % 64 != 0 && 64 % ASKED != 0) __builtin_prefetch(held + ASKED - 1);
#if NUMBERS > 0 && NUMBERS < 16
  if (GROUP > 1 || 8 * SCALE_STRIDE_BYTES != STRIDE_BITS) {  // else they are in the row
    __builtin_prefetch(table.steps + record / GROUP * SCALE_STRIDE_BYTES);
    __builtin_prefetch(table.offsets + record / GROUP * SCALE_STRIDE_BYTES);
  }
#endif
}

}  // namespace
