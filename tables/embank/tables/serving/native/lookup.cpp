// Rows of several tables alike, for one id of each table in each row of a batch: address, take, widen, in one pass.
//
// It is compiled for one form at a time, see `embank.tables.serving.native.forms.Form`, whose fields are macros.
// Numbers lie in records of WIDTH numbers, at equal distances:
//   NUMBERS       bits of a number: 32 fp32, 16 fp16, -16 bf16, and 2 to 8 for whole numbers
//   WIDTH         numbers of a record
//   STRIDE_BITS   bits from record to record: those of whole numbers may begin within a byte
//   GROUP         records that share a step and an offset, whole numbers only
//   SCALE_STRIDE_BYTES  from one step to the next, likewise from offset to offset
// A physical row of ROW numbers is made of them:
//   SHAPE         0: it is a record. 1: it is BOOKS records, the centroids that its codes name. 2 and 3: a record is
//                 one number, and those of a row that are not zero follow each other; which they are is told by a
//                 bitmap, or by a list of the low LOW_BITS of their numbers
//   BOOKS, CODES  codebooks, and centroids of each
//   HEAD_BITS, TAIL_BITS  of a code of the first rows, and of the others
// And a logical row of that:
//   DIM           numbers of it; zeros follow a row that is narrower
//   WIDENED       0, or 1 where a row is multiplied by a matrix [ROW, DIM], or 2 where a bias [DIM] is added as well
//   HOLES         1 where ids may have no row, which gives zeros
#include "row.h"

namespace {

constexpr int64_t BLOCK = 1024;  // ids whose places are worked out at once
constexpr int64_t AHEAD = 16;    // rows that are asked of the memory before they are needed

enum Rule : int64_t { OWN = 0, CUT = 1, HASH = 2, KEPT = 3 };

// The row of each id, -1 where it has none; whether all of them are there. The hash is
// `embank.tables.ids.mixing.hash_words`; of a number below 2**63 the quotient by the inverse is right or one too small.
bool address(const Table& table, const int64_t* ids, int64_t count, int64_t* rows) {
  if (table.rule == OWN) {
    std::memcpy(rows, ids, count * sizeof(int64_t));
  } else if (table.rule == CUT) {
    for (int64_t i = 0; i < count; ++i) rows[i] = uint64_t(ids[i]) < table.num_rows ? ids[i] : 0;
  } else if (table.rule == HASH) {
    for (int64_t i = 0; i < count; ++i) {
      uint64_t z = (uint64_t(ids[i]) ^ table.salt) + 0x9E3779B97F4A7C15u;
      z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
      z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
      z = (z ^ (z >> 31)) & 0x7FFFFFFFFFFFFFFFu;
      const uint64_t quotient = uint64_t((static_cast<unsigned __int128>(z) * table.inverse) >> 64);
      const uint64_t rest = z - quotient * table.num_rows;
      rows[i] = int64_t(rest >= table.num_rows ? rest - table.num_rows : rest);
    }
  } else {
    bool is_there = true;
    for (int64_t i = 0; i < count; ++i) {
      ask_bitmap(table.kept, ids[i + AHEAD < count ? i + AHEAD : count - 1]);
      const int64_t row = ones_before(table.kept, ids[i]);
      const bool is_kept = word_at(table.kept.fine + ids[i] / 64 * 8) >> ids[i] % 64 & 1;
      is_there &= !is_kept || uint64_t(row) < table.num_held;
      rows[i] = is_kept ? row : -1;
    }
    return is_there;
  }
  return true;
}

inline void widen(const float* numbers, const float* matrix, float* __restrict__ out) {
  float sums[DIM];
  for (int64_t d = 0; d < DIM; ++d) sums[d] = numbers[0] * matrix[d];
  for (int64_t i = 1; i < ROW; ++i) {
    for (int64_t d = 0; d < DIM; ++d) sums[d] += numbers[i] * matrix[i * DIM + d];
  }
#if WIDENED == 2
  for (int64_t d = 0; d < DIM; ++d) sums[d] += matrix[ROW * DIM + d];
#endif
  std::memcpy(out, sums, sizeof sums);
}

// What is asked of the memory before it is needed: the last place once more behind the others.
inline void go_on(int64_t* places, int64_t count) {
  for (int64_t i = 0; i < AHEAD; ++i) places[count + i] = places[count - 1];
}

// Rows of a table, `stride` numbers from one to the next; whether they are there.
bool look_up(const Table& table, const int64_t* ids, int64_t count, float* out, int64_t stride) {
  int64_t rows[BLOCK + AHEAD];
  if (!address(table, ids, count, rows)) return false;
  go_on(rows, count);
  int64_t* places = rows;
#if SHAPE == 1
  const Books books(table, count);
#elif SHAPE > 1
  int64_t values[BLOCK + AHEAD];
  places = values;
  for (int64_t i = 0; i < count; ++i) {
    if (!HOLES || rows[i + AHEAD] >= 0) ask_places(table, rows[i + AHEAD]);
    places[i] = HOLES && rows[i] < 0 ? 0 : first_value(table, rows[i]);
    if (places[i] < 0) return false;
  }
  go_on(places, count);
#endif
  for (int64_t i = 0; i < AHEAD; ++i) {
    if (!HOLES || places[i] >= 0) ask(table, places[i]);
  }
  bool is_there = true;
  for (int64_t i = 0; i < count; ++i) {
    if (!HOLES || places[i + AHEAD] >= 0) ask(table, places[i + AHEAD]);
    float* own = out + i * stride;
    if (HOLES && rows[i] < 0) {
      std::memset(own, 0, DIM * sizeof(float));
      continue;
    }
#if WIDENED
    float numbers[ROW];
#else
    float* numbers = own;
#endif
#if SHAPE == 0
    decode(table, rows[i], numbers);
#elif SHAPE == 1
    books.join(table, rows[i], numbers);
#else
    is_there &= spread(table, rows[i], places[i], numbers);
#endif
#if WIDENED
    widen(numbers, table.matrix, own);
#else
    if (DIM > ROW) std::memset(own + ROW, 0, (DIM - ROW) * sizeof(float));
#endif
  }
  return is_there;
}

}  // namespace

// ids: int64, `id_stride` from one table's to the next one's; those from `start` to before `stop` are looked up.
// out: fp32 [ids, num_tables, DIM].
// It returns 0, or 1 where a table is damaged and has not what ids lead to.
extern "C" int64_t embank_lookup(
    const Table* tables, int64_t num_tables, const int64_t* ids, int64_t id_stride, int64_t start, int64_t stop,
    float* out) {
  for (int64_t first = start; first < stop; first += BLOCK) {
    const int64_t count = stop - first < BLOCK ? stop - first : BLOCK;
    for (int64_t k = 0; k < num_tables; ++k) {
      const Table table = tables[k];
      float* own = out + (first * num_tables + k) * DIM;
      if (!look_up(table, ids + k * id_stride + first, count, own, num_tables * DIM)) return 1;
    }
  }
  return 0;
}
