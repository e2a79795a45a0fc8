// Rows of several tables for a batch of bags, and their update by the gradients of what was looked up.
//
// Tables may differ in width, and be looked up any number of times.
// ids: int64, lookup after lookup, bag after bag; offsets: int64 [num_lookups * bags + 1].
#include "lookup.h"
#include "update.h"

// It returns 0, or 1 where an id is none of its table's.
extern "C" int64_t embank_look_up(
    const Table* tables, const Lookup* lookups, int64_t num_lookups, const int64_t* ids, const int64_t* offsets,
    int64_t bags, Parallel parallel, int64_t threads) {
  return !look_up(tables, lookups, num_lookups, Batch{ids, offsets, bags}, Team{parallel, threads});
}

// It returns 0, 1 where there is no memory for its work, or 2 where an id is none of its table's, which is left out.
extern "C" int64_t embank_update(
    const Table* tables, int64_t num_tables, const Lookup* lookups, int64_t num_lookups, const int64_t* ids,
    const int64_t* offsets, int64_t bags, int64_t optimizer, double lr, double eps, Parallel parallel,
    int64_t threads) {
  try {
    const bool is_there = update(
        tables, num_tables, lookups, num_lookups, Batch{ids, offsets, bags},
        Step{Optimizer(optimizer), float(lr), float(eps)}, Team{parallel, threads});
    return is_there ? 0 : 2;
  } catch (const std::exception&) {
    return 1;
  }
}
