// What the passes over rows are told of tables and batches, and how they share their work among threads.
#pragma once
#include <atomic>
#include <cstdint>
#include <exception>
#include <new>

namespace {

constexpr int64_t LINE = 64 / sizeof(float);  // numbers that memory gives at once

enum Optimizer : int64_t { SGD = 0, ADAGRAD = 1, ROWWISE_ADAGRAD = 2 };

struct Table {
  float* rows;      // [num_rows, pitch]
  float* state;     // of row-wise Adagrad [num_rows], of Adagrad [num_rows, pitch]
  int64_t num_rows;
  int64_t pitch;    // numbers from one row to the next
  int64_t columns;  // of a row; zeros follow up to the pitch
  int64_t padded;   // columns that row-wise Adagrad takes the mean over
  double scale;     // of learning rate and epsilon, see `rowwise_scale`
};

// What is looked up once, or its gradients.
struct Lookup {
  int64_t table;
  float* numbers;  // of the first bag, and
  int64_t stride;  // from one bag's to the next one's
};

// Bags of ids, lookup after lookup, bag after bag.
struct Batch {
  const int64_t* ids;
  const int64_t* offsets;  // [lookups * bags + 1]
  int64_t bags;            // of each lookup
};

// `GOMP_parallel`: what OpenMP's compilers call, so that torch's own threads do the work.
typedef void (*Parallel)(void (*)(void*), void*, unsigned, unsigned);

struct Team {
  Parallel parallel;  // null: there is none
  int64_t threads;

  // Tasks 0 to before `count`, each by the thread that comes first.
  template <typename Work>
  void share(int64_t count, const Work& work) const {
    if (parallel == nullptr || threads < 2 || count < 2) {
      for (int64_t task = 0; task < count; ++task) work(task);
      return;
    }
    struct Shared {
      const Work& work;
      int64_t count;
      std::atomic<int64_t> next{0};
      std::atomic<bool> is_full{false};
    } shared{work, count};
    const auto run = [](void* given) {
      Shared& own = *static_cast<Shared*>(given);
      try {
        for (int64_t task; (task = own.next.fetch_add(1, std::memory_order_relaxed)) < own.count;) own.work(task);
      } catch (const std::exception&) {  // there is no memory
        own.is_full = true;
      }
    };
    parallel(run, &shared, unsigned(threads < count ? threads : count), 0);
    if (shared.is_full) throw std::bad_alloc();
  }
};

// Calls `work.template run<C>()`, with the number of columns where the compiler is to know it, else with 0.
template <typename Work>
void with_columns(int64_t columns, const Work& work) {
  switch (columns) {
    case 1: return work.template run<1>();
    case 4: return work.template run<4>();
    case 8: return work.template run<8>();
    case 16: return work.template run<16>();
    case 32: return work.template run<32>();
    case 64: return work.template run<64>();
    case 128: return work.template run<128>();
    default: return work.template run<0>();
  }
}

// Compilers take functions that only ask memory for functions without an effect, and leave them out where they do not
// inline them.
#define INLINED __attribute__((always_inline)) inline

// Calls `work(d)` for each column d; for 16 or 4 of them at once, where their number is not known to the compiler. The
// calls must not depend on each other.
template <int64_t C, typename Work>
INLINED void each_column(int64_t columns, const Work& work) {
  if (C) {
#pragma omp simd
    for (int64_t d = 0; d < C; ++d) work(d);
    return;
  }
  int64_t first = 0;
  for (; first + 16 <= columns; first += 16) {
#pragma omp simd
    for (int64_t d = 0; d < 16; ++d) work(first + d);
  }
  for (; first + 4 <= columns; first += 4) {
#pragma omp simd
    for (int64_t d = 0; d < 4; ++d) work(first + d);
  }
  for (; first < columns; ++first) work(first);
}

// How near to the core memory is brought before it is needed, as `__builtin_prefetch` has it.
constexpr int NEAR = 3, FAR = 2;

template <int HOW>
INLINED void ask(const float* numbers, int64_t columns) {
  for (int64_t d = 0; d < columns; d += LINE) __builtin_prefetch(numbers + d, HOW == FAR, HOW);
  if (columns > 1) __builtin_prefetch(numbers + columns - 1, HOW == FAR, HOW);  // where it does not begin with a line
}

}  // namespace
