// Physical rows that are made of records: one, some centroids, or values at places.
#pragma once
#include <cstdlib>

#include "record.h"

namespace {

#if SHAPE == 1
// Codes to centroids. For many ids those of a table are decoded once; of few, and of fp32, each where it is met.
class Books {
 public:
  Books(const Table& table, int64_t num_ids) {
    if (NUMBERS == 32 || num_ids <= CODES) return;
    decoded_ = static_cast<float*>(std::malloc(NUM_CENTROIDS * WIDTH * sizeof(float)));
    if (decoded_ == nullptr) return;
    for (uint64_t at = 0; at < NUM_CENTROIDS; ++at) decode(table, at, decoded_ + at * WIDTH);
  }
  Books(const Books&) = delete;
  Books& operator=(const Books&) = delete;
  ~Books() { std::free(decoded_); }

  void join(const Table& table, uint64_t row, float* __restrict__ out) const {
    if (row < table.num_head) {
      join<HEAD_BITS>(table, table.head, table.head_end, row, out);
    } else {
      join<TAIL_BITS>(table, table.tail, table.tail_end, row - table.num_head, out);
    }
  }

 private:
  static constexpr uint64_t NUM_CENTROIDS = uint64_t(BOOKS) * CODES;
  float* decoded_ = nullptr;

  template <int BITS>
  void join(const Table& table, const char* codes, const char* end, uint64_t row, float* __restrict__ out) const {
    constexpr uint64_t ROW_BITS = uint64_t(BOOKS) * BITS, ONE = 1, MOST_BYTES = ROW_BITS / 8 + 2 + sizeof(uint64_t);
    const char* held = codes + row * ROW_BITS / 8;
    const uint64_t first = ROW_BITS % 8 == 0 ? 0 : row * ROW_BITS % 8;
    char copy[MOST_BYTES];
    if (BITS != 0 && uint64_t(end - held) < MOST_BYTES) {  // a whole word is read at each code
      std::memset(copy, 0, sizeof copy);
      std::memcpy(copy, held, end - held);
      held = copy;
    }
#pragma GCC unroll 16
    for (uint64_t book = 0; book < BOOKS; ++book) {
      const uint64_t bit = first + book * BITS;
      uint64_t code = BITS == 0 ? 0 : word_at(held + bit / 8) >> bit % 8 & ((ONE << BITS) - 1);
      if ((ONE << BITS) > CODES && code >= CODES) code = CODES - 1;  // only in a damaged table
      const uint64_t centroid = book * CODES + code;
      if (NUMBERS != 32 && decoded_ != nullptr) {
        std::memcpy(out + book * WIDTH, decoded_ + centroid * WIDTH, WIDTH * sizeof(float));
      } else {
        decode(table, centroid, out + book * WIDTH);
      }
    }
  }
};
#endif

#if SHAPE == 2
inline uint64_t bits_from(const Places& bitmap, uint64_t position, uint64_t count) {
  const char* own = bitmap.fine + position / 64 * 8;
  const uint64_t shift = position % 64;
  uint64_t bits = word_at(own) >> shift;
  if (shift + count > 64) bits |= word_at(own + 8) << (64 - shift);  // else there may be no such word
  return count < 64 ? bits & ((uint64_t(1) << count) - 1) : bits;
}

inline void ask_places(const Table& table, uint64_t row) { ask_bitmap(table.entries, row * ROW); }

// The first value that is not before the row; below 0 in a damaged table.
inline int64_t first_value(const Table& table, uint64_t row) { return ones_before(table.entries, row * ROW); }

inline bool spread(const Table& table, uint64_t row, uint64_t value, float* __restrict__ out) {
  std::memset(out, 0, ROW * sizeof(float));
  for (uint64_t begin = 0; begin < ROW; begin += 64) {
    uint64_t bits = bits_from(table.entries, row * ROW + begin, ROW - begin < 64 ? ROW - begin : 64);
    if (value + __builtin_popcountll(bits) > table.num_values) return false;
    for (; bits; bits &= bits - 1) decode(table, value++, out + begin + __builtin_ctzll(bits));
  }
  return true;
}
#elif SHAPE == 3
inline uint64_t low_at(const Table& table, uint64_t value) {
#if LOW_BITS == 8
  return uint8_t(table.entries.fine[value]);
#else
  int16_t low;
  std::memcpy(&low, table.entries.fine + 2 * value, sizeof low);
  return uint64_t(low + (1 << 15));
#endif
}

inline void ask_places(const Table& table, uint64_t row) {
  __builtin_prefetch(table.entries.counts + (row * ROW >> LOW_BITS) * (table.entries.is_wide ? 8 : 4));
}

// The first value that is not before the row; below 0 in a damaged table.
inline int64_t first_value(const Table& table, uint64_t row) {
  const uint64_t number = row * ROW, bucket = number >> LOW_BITS, low = number & ((1 << LOW_BITS) - 1);
  uint64_t first = count_at(table.entries, bucket), count = count_at(table.entries, bucket + 1) - first;
  if (first > table.num_values || count > table.num_values - first) return -1;
  while (count) {
    const uint64_t half = count / 2;
    const bool is_below = low_at(table, first + half) < low;
    first += is_below ? half + 1 : 0;
    count = is_below ? count - half - 1 : half;
  }
  return int64_t(first);
}

inline bool spread(const Table& table, uint64_t row, uint64_t value, float* __restrict__ out) {
  std::memset(out, 0, ROW * sizeof(float));
  const uint64_t begin = row * ROW;
  for (uint64_t bucket = begin >> LOW_BITS; bucket <= (begin + ROW - 1) >> LOW_BITS; ++bucket) {
    const uint64_t end = count_at(table.entries, bucket + 1);
    if (end > table.num_values) return false;
    for (; value < end; ++value) {
      const uint64_t column = (bucket << LOW_BITS | low_at(table, value)) - begin;
      if (column >= ROW) return true;
      decode(table, value, out + column);
    }
  }
  return true;
}
#endif

// Asks the memory for what is at a place: a row, or the first value of one.
inline void ask(const Table& table, uint64_t place) {
#if SHAPE == 1
  constexpr uint64_t ROW_BYTES = uint64_t(BOOKS) * (HEAD_BITS > TAIL_BITS ? HEAD_BITS : TAIL_BITS) / 8;
  const bool is_head = place < table.num_head;
  const char* held = is_head ? table.head + place * BOOKS * HEAD_BITS / 8
                             : table.tail + (place - table.num_head) * BOOKS * TAIL_BITS / 8;
  __builtin_prefetch(held);
  __builtin_prefetch(held + ROW_BYTES);
#else
  ask_record(table, place);
  if (SHAPE != 0) ask_record(table, place + ROW / 4);  // where a sparse row's values may end
#endif
}

}  // namespace
