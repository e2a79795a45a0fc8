// Rows of several tables alike, for one id of each table in each row of a batch: address, decode, widen, in one pass.
//
// It is compiled for one form of rows at a time, see `embank.tables.serving.native.build.Form`, whose fields are macros:
//   NUMBERS       bits of a number: 32 fp32, 16 fp16, -16 bf16, and 2 to 8 for whole numbers
//   WIDTH, DIM    numbers of a row as it is held, and as it is given out
//   STRIDE_BITS   bits from row to row: those of whole numbers may begin within a byte
//   GROUP         rows that share a step and an offset, whole numbers only
//   SCALE_STRIDE_BYTES  from one step to the next, likewise from offset to offset
//   WIDENED       0, or 1 where a row is multiplied by a matrix [WIDTH, DIM], or 2 where a bias [DIM] is added as well
#include <cstdint>
#include <cstring>

namespace {

// Vectors and instructions by the compiler's own names: its header of all of them takes longer to read than all of this.
typedef int16_t Halves __attribute__((vector_size(16)));
typedef int32_t Words __attribute__((vector_size(32)));
typedef float Floats __attribute__((vector_size(32)));

constexpr int64_t BLOCK = 1024;  // ids whose places are worked out at once
constexpr int64_t AHEAD = 16;    // rows that are asked of the memory before they are needed

enum Rule : int64_t { OWN = 0, CUT = 1, HASH = 2 };

struct Table {
  const char* rows;
  const char* steps;
  const char* offsets;
  const float* matrix;
  int64_t rule;
  uint64_t num_rows;
  uint64_t salt;
  uint64_t inverse;  // 2**64 / num_rows, rounded down, at most 2**64 - 1
};

// The row of each id. The hash is `embank.tables.ids.mixing.hash_words`; of a number below 2**63 the quotient by the
// inverse is right or one too small.
void address(const Table& table, const int64_t* ids, int64_t count, int64_t* rows) {
  if (table.rule == OWN) {
    std::memcpy(rows, ids, count * sizeof(int64_t));
  } else if (table.rule == CUT) {
    for (int64_t i = 0; i < count; ++i) rows[i] = uint64_t(ids[i]) < table.num_rows ? ids[i] : 0;
  } else {
    for (int64_t i = 0; i < count; ++i) {
      uint64_t z = (uint64_t(ids[i]) ^ table.salt) + 0x9E3779B97F4A7C15u;
      z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
      z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
      z = (z ^ (z >> 31)) & 0x7FFFFFFFFFFFFFFFu;
      const uint64_t quotient = uint64_t((static_cast<unsigned __int128>(z) * table.inverse) >> 64);
      const uint64_t rest = z - quotient * table.num_rows;
      rows[i] = int64_t(rest >= table.num_rows ? rest - table.num_rows : rest);
    }
  }
}

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
  // Exponent and fraction of fp16 in fp32's places are the number times 2**-112; the exponent of infinities is all ones.
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

inline void decode(const Table& table, uint64_t row, float* __restrict__ out) {
  const char* held = table.rows + row * STRIDE_BITS / 8;
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

inline void widen(const float* numbers, const float* matrix, float* __restrict__ out) {
  float sums[DIM];
  for (int64_t d = 0; d < DIM; ++d) sums[d] = numbers[0] * matrix[d];
  for (int64_t i = 1; i < WIDTH; ++i) {
    for (int64_t d = 0; d < DIM; ++d) sums[d] += numbers[i] * matrix[i * DIM + d];
  }
#if WIDENED == 2
  for (int64_t d = 0; d < DIM; ++d) sums[d] += matrix[WIDTH * DIM + d];
#endif
  std::memcpy(out, sums, sizeof sums);
}

// Rows begin at a multiple of what they are long, as a bundle's do, or may begin in one line of the cache and end in
// the next.
inline void ask(const Table& table, uint64_t row) {
  const char* held = table.rows + row * STRIDE_BITS / 8;
  constexpr int64_t NBYTES = (STRIDE_BITS + 7) / 8;
  constexpr int64_t ASKED = NBYTES < 1024 ? NBYTES : 1024;  // the processor fetches the rest of long rows by itself
  for (int64_t at = 0; at < ASKED; at += 64) __builtin_prefetch(held + at);
  if (ASKED % 64 != 0 && 64 % ASKED != 0) __builtin_prefetch(held + ASKED - 1);
#if NUMBERS > 0 && NUMBERS < 16
  if (GROUP > 1 || 8 * SCALE_STRIDE_BYTES != STRIDE_BITS) {  // else they are in the row
    __builtin_prefetch(table.steps + row / GROUP * SCALE_STRIDE_BYTES);
    __builtin_prefetch(table.offsets + row / GROUP * SCALE_STRIDE_BYTES);
  }
#endif
}

}  // namespace

// ids: int64, `id_stride` from one table's to the next one's; those from `start` to before `stop` are looked up.
// out: fp32 [ids, num_tables, DIM].
extern "C" void embank_lookup(
    const Table* tables, int64_t num_tables, const int64_t* ids, int64_t id_stride, int64_t start, int64_t stop,
    float* out) {
  int64_t rows[BLOCK + AHEAD];
  for (int64_t first = start; first < stop; first += BLOCK) {
    const int64_t count = stop - first < BLOCK ? stop - first : BLOCK;
    for (int64_t k = 0; k < num_tables; ++k) {
      const Table table = tables[k];
      address(table, ids + k * id_stride + first, count, rows);
      for (int64_t i = 0; i < AHEAD; ++i) rows[count + i] = rows[count - 1];
      for (int64_t i = 0; i < AHEAD; ++i) ask(table, rows[i]);
      for (int64_t i = 0; i < count; ++i) {
        ask(table, rows[i + AHEAD]);
        float* own = out + ((first + i) * num_tables + k) * DIM;
#if WIDENED
        float numbers[WIDTH];
        decode(table, rows[i], numbers);
        widen(numbers, table.matrix, own);
#else
        decode(table, rows[i], own);
#endif
      }
    }
  }
}
