// The update of rows by the gradients of what was looked up: the gradients of each distinct row are summed, in an order
// that the batch alone decides and not the threads, then the optimizer moves it once.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <vector>

#include "tables.h"

namespace {

constexpr int64_t SUMS = 1 << 17;   // numbers of the sums that one task holds, so that they stay in the cache
constexpr int64_t MOST_IDS = 1 << 13, LEAST_IDS = 1 << 8;
constexpr int64_t MOST_PARTS = 1 << 10, IDS_PER_COUNT = 16;
constexpr int64_t MOST_COPIED = 8;  // columns of gradients that are put in order themselves, not where they are
constexpr int64_t POINTER = sizeof(float*) / sizeof(uint32_t), WRITTEN_AHEAD = 32;
constexpr int64_t BLOCK = 64;       // bags whose gradients lie in the cache while ids are put in order
constexpr int64_t ROWS_AHEAD = 16, GRADIENTS_AHEAD = 16;
constexpr uint32_t SLOT_FACTOR = 0x9E3779B1u, PART_FACTOR = 0x85EBCA6Bu;

struct Step {
  Optimizer optimizer;
  float lr;
  float eps;
};

// What a thread works with; kept from one batch to the next.
struct Room {
  std::vector<int32_t> slots;  // of a hash table: the number of a distinct row, -1 where there is none
  std::vector<uint32_t> rows;  // of each distinct row
  std::vector<float> sums;     // of its gradients, [rows, columns]
};

// The distinct rows among some ids, in the order in which they come, and the sum of the gradients of each.
template <int64_t C>
class Sums {
 public:
  // `expected`: ids of about as many rows will come, or of fewer.
  Sums(Room& room, const Table& table, const Step& step, int64_t expected)
      : room_(room), table_(table), step_(step) {
    while ((int64_t(1) << bits_) < 2 * expected) ++bits_;
    make_room();
  }

  void add(uint32_t row, const float* __restrict__ gradient) {
    const int32_t known = number_of(row);
    if (known < 0) {
      room_.rows[count_] = row;
      float* sum = room_.sums.data() + count_ * columns();
      each_column<C>(columns(), [&](int64_t d) { sum[d] = gradient[d]; });
      ask_row<FAR>(row);
      if (++count_ == capacity()) {
        ++bits_;
        make_room();
      }
    } else {
      float* sum = room_.sums.data() + known * columns();
      each_column<C>(columns(), [&](int64_t d) { sum[d] += gradient[d]; });
    }
  }

  void update() {
    for (int64_t i = 0; i < ROWS_AHEAD; ++i) room_.rows[count_ + i] = count_ ? room_.rows[count_ - 1] : 0;
    for (int64_t i = 0; i < std::min(count_, ROWS_AHEAD); ++i) ask_row<NEAR>(room_.rows[i]);
    const float lr = float(step_.lr * table_.scale), eps = float(step_.eps * table_.scale);
    for (int64_t i = 0; i < count_; ++i) {
      ask_row<NEAR>(room_.rows[i + ROWS_AHEAD]);
      const int64_t row = room_.rows[i];
      const float* __restrict__ gradient = room_.sums.data() + i * columns();
      float* __restrict__ own = table_.rows + row * table_.pitch;
      if (step_.optimizer == ROWWISE_ADAGRAD) {
        table_.state[row] += sum_of_squares(gradient) / float(table_.padded);
        const float rate = lr / (std::sqrt(table_.state[row]) + eps);
        each_column<C>(columns(), [&](int64_t d) { own[d] -= rate * gradient[d]; });
      } else if (step_.optimizer == ADAGRAD) {
        float* __restrict__ state = table_.state + row * table_.pitch;
        each_column<C>(columns(), [&](int64_t d) {
          state[d] += gradient[d] * gradient[d];
          own[d] -= lr * gradient[d] / (std::sqrt(state[d]) + eps);
        });
      } else {
        each_column<C>(columns(), [&](int64_t d) { own[d] -= lr * gradient[d]; });
      }
    }
  }

 private:
  int64_t columns() const { return C ? C : table_.columns; }
  int64_t capacity() const { return int64_t(1) << (bits_ - 1); }

  float sum_of_squares(const float* numbers) const {
    float sums[4] = {};
    const int64_t fours = columns() / 4 * 4;
    for (int64_t first = 0; first < fours; first += 4) {
#pragma omp simd
      for (int64_t d = 0; d < 4; ++d) sums[d] += numbers[first + d] * numbers[first + d];
    }
    for (int64_t d = fours; d < columns(); ++d) sums[d - fours] += numbers[d] * numbers[d];
    return (sums[0] + sums[1]) + (sums[2] + sums[3]);
  }

  // The number of a row; -1 where it has not come before, and is given the next one.
  int32_t number_of(uint32_t row) {
    int32_t* slots = room_.slots.data();
    uint32_t slot = is_small_ ? row : row * SLOT_FACTOR >> (32 - bits_);
    while (slots[slot] >= 0 && room_.rows[slots[slot]] != row) slot = (slot + 1) & mask_;
    const int32_t known = slots[slot];
    if (known < 0) slots[slot] = int32_t(count_);
    return known;
  }

  void make_room() {
    const int64_t num_slots = int64_t(1) << bits_, known = count_;
    if (int64_t(room_.slots.size()) < num_slots) room_.slots.resize(num_slots);
    if (int64_t(room_.rows.size()) < capacity() + ROWS_AHEAD) room_.rows.resize(capacity() + ROWS_AHEAD);
    if (int64_t(room_.sums.size()) < capacity() * columns()) room_.sums.resize(capacity() * columns());
    std::memset(room_.slots.data(), 0xFF, num_slots * sizeof(int32_t));
    mask_ = uint32_t(num_slots - 1);
    is_small_ = table_.num_rows <= num_slots;
    for (count_ = 0; count_ < known; ++count_) number_of(room_.rows[count_]);
  }

  // A new row is asked for at once, into the large cache, and into the small one shortly before it is needed.
  template <int HOW>
  INLINED void ask_row(int64_t row) const {
    ask<HOW>(table_.rows + row * table_.pitch, columns());
    if (step_.optimizer == ROWWISE_ADAGRAD) ask<HOW>(table_.state + row, 1);
    if (step_.optimizer == ADAGRAD) ask<HOW>(table_.state + row * table_.pitch, columns());
  }

  Room& room_;
  const Table& table_;
  const Step& step_;
  int64_t count_ = 0;
  int bits_ = 4;  // of the number of slots
  uint32_t mask_ = 0;
  bool is_small_ = false;
};

// The update of a table whose ids are few enough for one task.
struct Whole {
  const Table& table;
  const Batch& batch;
  const Lookup* lookups;
  const int64_t* own;  // numbers of its lookups
  int64_t num_own, num_ids;
  const Step& step;
  Room& room;
  std::atomic<bool>& is_there;

  template <int64_t C>
  void run() const {
    Sums<C> sums(room, table, step, num_ids);
    for (int64_t k = 0; k < num_own; ++k) {
      const int64_t* offsets = batch.offsets + own[k] * batch.bags;
      const float* gradient = lookups[own[k]].numbers;
      const int64_t stride = lookups[own[k]].stride;
      for (int64_t bag = 0; bag < batch.bags; ++bag, gradient += stride) {
        ask<NEAR>(gradient + GRADIENTS_AHEAD * stride, C ? C : table.columns);
        for (int64_t i = offsets[bag]; i < offsets[bag + 1]; ++i) {
          if (uint64_t(batch.ids[i]) < uint64_t(table.num_rows)) {
            sums.add(uint32_t(batch.ids[i]), gradient);
          } else {
            is_there = false;
          }
        }
      }
    }
    sums.update();
  }
};

// Ids of a table in the order in which tasks take them, each with the gradient of its bag: a copy of a short one, else
// where it is.
template <int64_t C>
struct Ordered {
  uint32_t* words;
  int64_t columns;  // known to the compiler where C is not 0

  static int64_t width(int64_t columns) { return 1 + (columns <= MOST_COPIED ? columns : POINTER); }

  uint32_t* of(int64_t place) const { return words + place * width(C ? C : columns); }

  void put(int64_t place, int64_t row, const float* gradient) const {
    uint32_t* own = of(place);
    __builtin_prefetch(own + WRITTEN_AHEAD, 1);
    own[0] = uint32_t(row);
    if ((C ? C : columns) <= MOST_COPIED) {
      std::memcpy(own + 1, gradient, (C ? C : columns) * sizeof(float));
    } else {
      std::memcpy(own + 1, &gradient, sizeof gradient);
    }
  }

  const float* gradient(int64_t place) const {
    const uint32_t* own = of(place);
    if ((C ? C : columns) <= MOST_COPIED) return reinterpret_cast<const float*>(own + 1);
    const float* found;
    std::memcpy(&found, own + 1, sizeof found);
    return found;
  }
};

// The update of those rows of a table that one task takes.
struct Part {
  const Table& table;
  uint32_t* words;  // of `Ordered`
  int64_t start, stop;
  const Step& step;
  Room& room;

  template <int64_t C>
  void run() const {
    Sums<C> sums(room, table, step, std::min(stop - start, MOST_IDS));
    const Ordered<C> ordered{words, table.columns};
    for (int64_t i = start; i < stop; ++i) {
      if (table.columns > MOST_COPIED) {
        ask<NEAR>(ordered.gradient(std::min(i + GRADIENTS_AHEAD, stop - 1)), C ? C : table.columns);
      }
      sums.add(*ordered.of(i), ordered.gradient(i));
    }
    sums.update();
  }
};

// A table whose ids are shared out among tasks by a hash of their rows. Ranges of bags put their ids in order at the
// same time: each first counts those of each part, which says where its own begin.
class Divided {
 public:
  Divided(
      const Table& table, const Lookup* lookups, const int64_t* own, int64_t num_own, const Batch& batch,
      int64_t num_ids, int64_t ids_per_part)
      : table_(table), lookups_(lookups), own_(own), num_own_(num_own), num_ids_(num_ids), batch_(batch),
        words_(new uint32_t[num_ids * Ordered<0>::width(table.columns)]) {
    while ((num_parts_ * ids_per_part < num_ids) && num_parts_ < MOST_PARTS) num_parts_ *= 2, --shift_;
    const int64_t num_blocks = (batch.bags + BLOCK - 1) / BLOCK;
    const int64_t most_ranges = std::max(num_ids / std::max(MOST_IDS, IDS_PER_COUNT * num_parts_), int64_t(1));
    bags_per_range_ = (num_blocks + most_ranges - 1) / most_ranges * BLOCK;
    num_ranges_ = (batch.bags + bags_per_range_ - 1) / bags_per_range_;
    at_.assign(num_ranges_ * num_parts_, 0);
    starts_.assign(num_parts_ + 1, 0);
  }

  bool is_there() const { return starts_[num_parts_] == num_ids_; }
  int64_t num_ranges() const { return num_ranges_; }
  int64_t num_parts() const { return num_parts_; }

  void count(int64_t range) {
    int64_t* counts = at_.data() + range * num_parts_;
    each(range, [&](int64_t id, const float*, int64_t) { ++counts[part(id)]; });
  }

  void place() {
    int64_t total = 0;
    for (int64_t p = 0; p < num_parts_; ++p) {
      starts_[p] = total;
      for (int64_t range = 0; range < num_ranges_; ++range) {
        const int64_t count = at_[range * num_parts_ + p];
        at_[range * num_parts_ + p] = total;
        total += count;
      }
    }
    starts_[num_parts_] = total;
  }

  void order(int64_t range) {
    with_columns(table_.columns, Ordering{*this, range});
  }

  void update(int64_t part, const Step& step, Room& room) const {
    if (starts_[part] == starts_[part + 1]) return;
    with_columns(table_.columns, Part{table_, words_.get(), starts_[part], starts_[part + 1], step, room});
  }

 private:
  struct Ordering {
    Divided& divided;
    int64_t range;

    template <int64_t C>
    void run() const {
      int64_t* at = divided.at_.data() + range * divided.num_parts_;
      const Ordered<C> ordered{divided.words_.get(), divided.table_.columns};
      const int64_t columns = C ? C : divided.table_.columns;
      divided.each(range, [&](int64_t id, const float* gradient, int64_t stride) {
        if (columns <= MOST_COPIED) ask<NEAR>(gradient + GRADIENTS_AHEAD * stride, columns);
        ordered.put(at[divided.part(id)]++, id, gradient);
      });
    }
  };

  int64_t part(int64_t id) const { return num_parts_ == 1 ? 0 : uint32_t(id) * PART_FACTOR >> shift_; }

  // Visits ids block by block: neighbours among the lookups share lines of the memory.
  template <typename Visit>
  void each(int64_t range, const Visit& visit) const {
    const int64_t stop = std::min((range + 1) * bags_per_range_, batch_.bags);
    for (int64_t first = range * bags_per_range_; first < stop; first += BLOCK) {
      const int64_t last = std::min(first + BLOCK, stop);
      for (int64_t k = 0; k < num_own_; ++k) {
        const Lookup& lookup = lookups_[own_[k]];
        const int64_t* offsets = batch_.offsets + own_[k] * batch_.bags;
        for (int64_t bag = first; bag < last; ++bag) {
          for (int64_t i = offsets[bag]; i < offsets[bag + 1]; ++i) {
            const int64_t id = batch_.ids[i];
            if (uint64_t(id) >= uint64_t(table_.num_rows)) continue;
            visit(id, lookup.numbers + bag * lookup.stride, lookup.stride);
          }
        }
      }
    }
  }

  const Table& table_;
  const Lookup* lookups_;
  const int64_t* own_;  // numbers of its lookups
  const int64_t num_own_, num_ids_;
  const Batch& batch_;
  std::unique_ptr<uint32_t[]> words_;
  int64_t num_parts_ = 1, shift_ = 32, num_ranges_, bags_per_range_;
  std::vector<int64_t> at_;      // [ranges, parts]: counts, then where the next one is to go
  std::vector<int64_t> starts_;  // [parts + 1]
};

// All rows that a batch has looked up; whether all ids are there.
bool update(
    const Table* tables, int64_t num_tables, const Lookup* lookups, int64_t num_lookups, const Batch& batch,
    const Step& step, const Team& team) {
  std::vector<int64_t> starts(num_tables + 2, 0), own(num_lookups), num_ids(num_tables, 0);
  for (int64_t k = 0; k < num_lookups; ++k) {
    ++starts[lookups[k].table + 2];
    num_ids[lookups[k].table] += batch.offsets[(k + 1) * batch.bags] - batch.offsets[k * batch.bags];
  }
  for (int64_t t = 0; t < num_tables; ++t) starts[t + 2] += starts[t + 1];
  for (int64_t k = 0; k < num_lookups; ++k) own[starts[lookups[k].table + 1]++] = k;

  std::vector<Divided> divided;
  std::vector<int64_t> whole;
  for (int64_t t = 0; t < num_tables; ++t) {
    const int64_t ids_per_part = std::clamp(SUMS / tables[t].columns, LEAST_IDS, MOST_IDS);
    if (num_ids[t] > 2 * ids_per_part) {
      divided.emplace_back(
          tables[t], lookups, own.data() + starts[t], starts[t + 1] - starts[t], batch, num_ids[t], ids_per_part);
    } else if (num_ids[t]) {
      whole.push_back(t);
    }
  }
  struct Task {
    Divided* divided;
    int64_t number;
  };
  std::vector<Task> ranges, parts;
  for (Divided& one : divided) {
    for (int64_t r = 0; r < one.num_ranges(); ++r) ranges.push_back({&one, r});
    for (int64_t p = 0; p < one.num_parts(); ++p) parts.push_back({&one, p});
  }
  team.share(ranges.size(), [&](int64_t task) { ranges[task].divided->count(ranges[task].number); });
  for (Divided& one : divided) one.place();
  team.share(ranges.size(), [&](int64_t task) { ranges[task].divided->order(ranges[task].number); });

  std::atomic<bool> is_there{true};
  for (const Divided& one : divided) {
    if (!one.is_there()) is_there = false;
  }
  const int64_t num_parts = parts.size();
  team.share(num_parts + whole.size(), [&](int64_t task) {
    static thread_local Room room;
    if (task < num_parts) {
      parts[task].divided->update(parts[task].number, step, room);
    } else {
      const int64_t t = whole[task - num_parts];
      with_columns(
          tables[t].columns,
          Whole{tables[t], batch, lookups, own.data() + starts[t], starts[t + 1] - starts[t], num_ids[t],
                step, room, is_there});
    }
  });
  return is_there;
}

}  // namespace
