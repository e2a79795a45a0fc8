// Rows of a batch, summed over each bag.
#pragma once
#include <algorithm>

#include "tables.h"

namespace {

constexpr int64_t MOST_BAGS = 64;  // of each lookup that one task takes: what they give stays in the cache
constexpr int64_t TASKS_PER_THREAD = 4;
constexpr int64_t MOST_AHEAD = 64, LEAST_AHEAD = 4;

// Runs ahead of the ids of a task, lookup after lookup, and asks for their rows.
class Ahead {
 public:
  Ahead(
      const Table* tables, const Lookup* lookups, int64_t num_lookups, const Batch& batch, int64_t first, int64_t last)
      : tables_(tables), lookups_(lookups), num_lookups_(num_lookups), batch_(batch), first_(first), last_(last) {
    enter(0);
  }

  void go(int64_t steps) {
    while (steps-- > 0) {
      while (at_ == end_) {
        if (lookup_ == num_lookups_) return;
        enter(lookup_ + 1);
      }
      const int64_t id = batch_.ids[at_++];
      if (uint64_t(id) < uint64_t(table_->num_rows)) ask<NEAR>(table_->rows + id * table_->pitch, table_->columns);
    }
  }

 private:
  void enter(int64_t lookup) {
    lookup_ = lookup;
    if (lookup == num_lookups_) {
      at_ = end_ = 0;
      return;
    }
    table_ = tables_ + lookups_[lookup].table;
    at_ = batch_.offsets[lookup * batch_.bags + first_];
    end_ = batch_.offsets[lookup * batch_.bags + last_];
  }

  const Table* tables_;
  const Lookup* lookups_;
  const int64_t num_lookups_;
  const Batch& batch_;
  const int64_t first_, last_;
  int64_t lookup_ = 0, at_ = 0, end_ = 0;
  const Table* table_ = nullptr;
};

// Bags `first` to before `last` of one lookup. Whether all ids are there; those that are not count as zeros.
struct Bags {
  const Table& table;
  const Batch& batch;
  const Lookup& into;
  int64_t lookup, first, last;
  Ahead& ahead;
  bool& is_there;

  template <int64_t C>
  void run() const {
    const int64_t columns = C ? C : table.columns, pitch = table.pitch;
    const int64_t* offsets = batch.offsets + lookup * batch.bags;
    const uint64_t num_rows = table.num_rows;
    for (int64_t bag = first; bag < last; ++bag) {
      float* __restrict__ own = into.numbers + bag * into.stride;
      const int64_t start = offsets[bag], stop = offsets[bag + 1];
      ahead.go(stop - start);
      if (stop - start == 1 && uint64_t(batch.ids[start]) < num_rows) {
        const float* row = table.rows + batch.ids[start] * pitch;
        each_column<C>(columns, [&](int64_t d) { own[d] = row[d]; });
        continue;
      }
      each_column<C>(columns, [&](int64_t d) { own[d] = 0; });
      for (int64_t i = start; i < stop; ++i) {
        if (uint64_t(batch.ids[i]) >= num_rows) {
          is_there = false;
          continue;
        }
        const float* row = table.rows + batch.ids[i] * pitch;
        each_column<C>(columns, [&](int64_t d) { own[d] += row[d]; });
      }
    }
  }
};

// All lookups of a batch; whether all ids are there.
bool look_up(
    const Table* tables, const Lookup* lookups, int64_t num_lookups, const Batch& batch, const Team& team) {
  std::atomic<bool> is_there{true};
  int64_t widest = 1;
  for (int64_t k = 0; k < num_lookups; ++k) widest = std::max(widest, tables[lookups[k].table].columns);
  const int64_t far = std::clamp(MOST_AHEAD * LINE / widest, LEAST_AHEAD, MOST_AHEAD);
  const int64_t least_tasks = TASKS_PER_THREAD * team.threads;
  const int64_t bags = std::clamp((batch.bags + least_tasks - 1) / least_tasks, int64_t(1), MOST_BAGS);
  team.share((batch.bags + bags - 1) / bags, [&](int64_t task) {
    const int64_t first = task * bags, last = std::min(first + bags, batch.bags);
    Ahead ahead(tables, lookups, num_lookups, batch, first, last);
    ahead.go(far);
    bool own = true;
    for (int64_t k = 0; k < num_lookups; ++k) {
      const Table& table = tables[lookups[k].table];
      with_columns(table.columns, Bags{table, batch, lookups[k], k, first, last, ahead, own});
    }
    if (!own) is_there = false;
  });
  return is_there;
}

}  // namespace
