// What the lookup is told of a table, and bitmaps in which ones are counted.
#pragma once
#include <cstdint>
#include <cstring>

namespace {

// Which of many things are there: the words of a bitmap and how many ones are before every eighth one, or the low bits
// of their numbers and how many are before each value of the high bits.
struct Places {
  const char* fine;
  const char* counts;  // int64 where they are wide, else int32
  int64_t is_wide;
};

struct Table {
  const char* numbers;
  const char* steps;
  const char* offsets;
  uint64_t num_held;  // rows that there are
  uint64_t num_values;  // of a sparse shape
  const float* matrix;
  int64_t rule;
  uint64_t num_rows;
  uint64_t salt;
  uint64_t inverse;  // 2**64 / num_rows, rounded down, at most 2**64 - 1
  Places kept;       // of the rule: the ids that have a row
  Places entries;    // of a sparse shape
  const char* head;  // codes of the first rows, and of the others
  const char* head_end;
  const char* tail;
  const char* tail_end;
  uint64_t num_head;
};

inline uint64_t word_at(const char* place) {
  uint64_t word;
  std::memcpy(&word, place, sizeof word);
  return word;
}

inline int64_t count_at(const Places& places, uint64_t at) {
  if (places.is_wide) return int64_t(word_at(places.counts + 8 * at));
  int32_t count;
  std::memcpy(&count, places.counts + 4 * at, sizeof count);
  return count;
}

// Ones of a bitmap before a position.
inline int64_t ones_before(const Places& bitmap, uint64_t position) {
  const uint64_t own = position / 64;
  int64_t ones = count_at(bitmap, own / 8);
  for (uint64_t at = own / 8 * 8; at < own; ++at) ones += __builtin_popcountll(word_at(bitmap.fine + 8 * at));
  return ones + __builtin_popcountll(word_at(bitmap.fine + 8 * own) & ((uint64_t(1) << position % 64) - 1));
}

inline void ask_bitmap(const Places& bitmap, uint64_t position) {
  __builtin_prefetch(bitmap.fine + position / 512 * 64);
  __builtin_prefetch(bitmap.counts + position / 512 * (bitmap.is_wide ? 8 : 4));
}

}  // namespace
