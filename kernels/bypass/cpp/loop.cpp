// The low-rank bypasses of one group of sites, as one loop over a step's rows.
//
//     for each tile of rows, and each entry (an adapter with a weight) of it:
//         h = weight * (x A^T)                         fp32
//         y[site] += sum over the entries: h B[site]   summed in fp32, and rounded once to y's type
//
// x: (rows, in_features), or (rows,) int64 ids where A is (in_features, rank) and is read and not multiplied. Else A is
// (rank, in_features). B of a site is (its rank, out_features). All are row-major; x, y, A and B have one type.
//
// What a row gets does not depend on the other rows of its tile or on the threads: its sums run over the same lanes in
// the same order whatever they are. Threads are those of the OpenMP runtime that torch has loaded, which the caller
// hands over; nothing here is linked with one. Vectors are GCC's, which Clang has as well.

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <type_traits>
#if defined(__F16C__)
#include <immintrin.h>
#endif

namespace {

#if defined(__AVX512F__)
constexpr int LANES = 16;
#else
constexpr int LANES = 8;
#endif
constexpr int WIDTH = 2 * LANES;          // elements that are loaded at once
constexpr int MOST_ROWS = 4;              // of a tile
constexpr int64_t BLOCK = 32 * LANES;     // columns of y that are summed at once
constexpr int DEPTH = 4;                  // rows of B that are added up in one pass over them
constexpr int64_t WORTH_A_TEAM = 1 << 17; // multiplications, and elements read, for which threads are woken

typedef float Floats __attribute__((vector_size(4 * LANES)));
typedef uint32_t Words __attribute__((vector_size(4 * LANES)));

struct bfloat16 {
  uint16_t bits;
};
struct float16 {
  uint16_t bits;
};

template <typename To, typename From> To bits_of(const From &from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}

template <typename Vector> Vector load_as(const void *from) {
  Vector v;
  std::memcpy(&v, from, sizeof(v));
  return v;
}

inline Floats lanes(const float *from) { return load_as<Floats>(from); }
inline void put(float *to, Floats v) { std::memcpy(to, &v, sizeof(v)); }

// WIDTH elements in fp32, in the order in which their type is widened soonest: that of all sums over them.
struct Pair {
  Floats one, other;
};

inline Pair load(const float *from) { return {lanes(from), lanes(from + LANES)}; }
inline void store(float *to, Pair v) {
  put(to, v.one);
  put(to + LANES, v.other);
}

// Every second element, and those between: a word is two of them, of which the last is the upper half.
inline Pair load(const bfloat16 *from) {
  const Words both = load_as<Words>(from);
  return {bits_of<Floats>(both << 16), bits_of<Floats>(both & 0xffff0000)};
}

// In the upper half of each word, rounded to the nearest, and to even between two.
inline Words upper_half(Floats v) {
  const Words bits = bits_of<Words>(v);
  const Words nearest = bits + 0x7fff + ((bits >> 16) & 1);
  return v != v ? Words{} + 0x7fc00000 : nearest;
}

inline void store(bfloat16 *to, Pair v) {
  const Words both = (upper_half(v.one) >> 16) | (upper_half(v.other) & 0xffff0000);
  std::memcpy(to, &both, sizeof(both));
}

#if defined(__F16C__)
inline Floats widen(const float16 *from) {
  Floats v;
  for (int i = 0; i < LANES; i += 8) {
    const __m256 part = _mm256_cvtph_ps(load_as<__m128i>(from + i));
    std::memcpy(reinterpret_cast<float *>(&v) + i, &part, sizeof(part));
  }
  return v;
}

inline void narrow(float16 *to, Floats v) {
  for (int i = 0; i < LANES; i += 8) {
    const __m256 part = load_as<__m256>(reinterpret_cast<float *>(&v) + i);
    const __m128i halves = _mm256_cvtps_ph(part, _MM_FROUND_TO_NEAREST_INT);
    std::memcpy(to + i, &halves, sizeof(halves));
  }
}
#else
typedef uint16_t Halves __attribute__((vector_size(2 * LANES)));

inline Floats widen(const float16 *from) {
  const Words half = __builtin_convertvector(load_as<Halves>(from), Words);
  const Words sign = (half & 0x8000) << 16, rest = half & 0x7fff;
  // Exponents are moved by a product, which makes normal numbers of those that were not; infinities and NaN stay.
  const Words finite = bits_of<Words>(bits_of<Floats>(rest << 13) * 0x1p112f), special = (rest << 13) | 0x7f800000;
  return bits_of<Floats>((rest >= 0x7c00 ? special : finite) | sign);
}

inline void narrow(float16 *to, Floats v) {
  const Words bits = bits_of<Words>(v), sign = (bits >> 16) & 0x8000, rest = bits & 0x7fffffff;
  // Below the least normal number, a sum with one half rounds to that number's steps.
  const Words small = bits_of<Words>(bits_of<Floats>(rest) + 0.5f) - 0x3f000000;
  const Words normal = (rest - 0x38000000 + 0xfff + ((rest >> 13) & 1)) >> 13;
  const Words large = rest > 0x7f800000 ? Words{} + 0x7e00 : Words{} + 0x7c00;
  const Words finite = rest < 0x38800000 ? small : normal;
  const Halves halves = __builtin_convertvector((rest >= 0x477ff000 ? large : finite) | sign, Halves);
  std::memcpy(to, &halves, sizeof(halves));
}
#endif

inline Pair load(const float16 *from) { return {widen(from), widen(from + LANES)}; }
inline void store(float16 *to, Pair v) {
  narrow(to, v.one);
  narrow(to + LANES, v.other);
}

// Fewer elements than WIDTH: the rest are zeros, and are not stored.
template <typename T> Pair load_some(const T *from, int64_t count) {
  T all[WIDTH] = {};
  std::memcpy(all, from, count * sizeof(T));
  return load(all);
}

template <typename T> void store_some(T *to, Pair v, int64_t count) {
  T all[WIDTH];
  store(all, v);
  std::memcpy(to, all, count * sizeof(T));
}

inline void add_product(Floats &sum, Pair a, Pair b) {
  sum += a.one * b.one;
  sum += a.other * b.other;
}

inline float sum(Floats v) {
  float all[LANES];
  put(all, v);
  for (int width = LANES / 2; width; width /= 2)
    for (int i = 0; i < width; ++i)
      all[i] += all[i + width];
  return all[0];
}

// One adapter's factors of the group. columns: where the site's ranks begin in h.
struct Site {
  int64_t rank, column, b;
};
struct Factors {
  int64_t a, rank;
  Site sites[1]; // as many as the group has
};
struct Tile {
  int64_t row, rows, first, end; // first, end: of its entries
};
struct Entry {
  int32_t segment;
  float weight;
};
struct Output {
  int64_t address, stride; // 0: left out
};
struct Plan {
  int64_t in_features, gather, num_sites;
  const int64_t *widths;
  int64_t num_tiles;
  const Tile *tiles;
  const Entry *entries;
  const Factors *const *factors; // by segment
};
struct Call {
  int64_t x, stride;
  Output outputs[1]; // as many as the group has sites
};
struct Team {
  void (*run)(void (*)(void *), void *, unsigned, unsigned); // GOMP_parallel
  void (*wait)();                                            // GOMP_barrier
  int (*index)();                                            // omp_get_thread_num
  int (*size)();                                             // omp_get_num_threads
};

struct Range {
  int64_t begin, end;
};

// A list of jobs of `count` pieces that cost the same; a share of the whole is a range of pieces of each job.
class Share {
public:
  Share(int64_t total, int index, int size)
      : begin_(total * index / size), end_(total * (index + 1) / size) {}

  Range next(int64_t count, int64_t cost) {
    const int64_t from = passed_;
    passed_ += count * cost;
    return {pieces(begin_ - from, count, cost), pieces(end_ - from, count, cost)};
  }

private:
  static int64_t pieces(int64_t cost_before, int64_t count, int64_t cost) {
    if (cost_before <= 0)
      return 0;
    const int64_t whole = (cost_before + cost - 1) / cost;
    return whole < count ? whole : count;
  }
  int64_t begin_, end_, passed_ = 0;
};

// h of RANKS rows of A, for ROWS rows of x. x: fp32, `stride` apart. h: `rank` apart.
template <typename T, int ROWS, int RANKS>
void dot(const float *x, int64_t stride, const T *a, int64_t width, float *h, int64_t rank, float weight) {
  Floats sums[RANKS][ROWS] = {};
  int64_t k = 0;
  for (; k + WIDTH <= width; k += WIDTH)
    for (int r = 0; r < RANKS; ++r) {
      __builtin_prefetch(a + (RANKS + r) * width + k);
      const Pair factor = load(a + r * width + k);
      for (int m = 0; m < ROWS; ++m)
        add_product(sums[r][m], load(x + m * stride + k), factor);
    }
  if (k < width)
    for (int r = 0; r < RANKS; ++r) {
      const Pair factor = load_some(a + r * width + k, width - k);
      for (int m = 0; m < ROWS; ++m)
        add_product(sums[r][m], load(x + m * stride + k), factor); // x ends in zeros
    }
  for (int r = 0; r < RANKS; ++r)
    for (int m = 0; m < ROWS; ++m)
      h[m * rank + r] = weight * sum(sums[r][m]);
}

template <int ROWS> constexpr int RANKS_AT_ONCE = ROWS == 1 ? 8 : ROWS == 2 ? 4 : 2;

template <typename T, int ROWS>
void shrink_rows(const float *x, int64_t stride, const T *a, int64_t width, float *h, int64_t rank, float weight,
                 Range ranks) {
  constexpr int AT_ONCE = RANKS_AT_ONCE<ROWS>;
  int64_t r = ranks.begin;
  for (; r + AT_ONCE <= ranks.end; r += AT_ONCE)
    dot<T, ROWS, AT_ONCE>(x, stride, a + r * width, width, h + r, rank, weight);
  for (; r < ranks.end; ++r)
    dot<T, ROWS, 1>(x, stride, a + r * width, width, h + r, rank, weight);
}

template <int ROWS, int DEEP>
inline void add_to(float *sums, const Floats (&scale)[DEEP][ROWS], const Pair (&factor)[DEEP]) {
  for (int m = 0; m < ROWS; ++m) {
    Pair total = load(sums + m * BLOCK);
    for (int r = 0; r < DEEP; ++r) {
      total.one += scale[r][m] * factor[r].one;
      total.other += scale[r][m] * factor[r].other;
    }
    store(sums + m * BLOCK, total);
  }
}

// sums: (ROWS, BLOCK) += h B of DEEP ranks. h: `rank` apart. b: rows `width` apart, of which `columns` are added.
template <typename T, int ROWS, int DEEP>
void accumulate(float *sums, const float *h, int64_t rank, const T *b, int64_t width, int64_t columns) {
  Floats scale[DEEP][ROWS];
  for (int r = 0; r < DEEP; ++r)
    for (int m = 0; m < ROWS; ++m)
      scale[r][m] = Floats{} + h[m * rank + r];
  Pair factor[DEEP];
  int64_t c = 0;
  for (; c + WIDTH <= columns; c += WIDTH) {
    for (int r = 0; r < DEEP; ++r) {
      __builtin_prefetch(b + (DEEP + r) * width + c);
      factor[r] = load(b + r * width + c);
    }
    add_to(sums + c, scale, factor);
  }
  if (c < columns) {
    for (int r = 0; r < DEEP; ++r)
      factor[r] = load_some(b + r * width + c, columns - c);
    add_to(sums + c, scale, factor);
  }
}

template <typename T, int ROWS>
void expand_entry(float *sums, const float *h, int64_t rank, const T *b, int64_t width, int64_t columns,
                  int64_t depth) {
  int64_t r = 0;
  for (; r + DEPTH <= depth; r += DEPTH)
    accumulate<T, ROWS, DEPTH>(sums, h + r, rank, b + r * width, width, columns);
  for (; r < depth; ++r)
    accumulate<T, ROWS, 1>(sums, h + r, rank, b + r * width, width, columns);
}

inline Pair operator+(Pair a, Pair b) { return {a.one + b.one, a.other + b.other}; }

template <typename T> void add_block(T *y, const float *sums, int64_t columns) {
  int64_t c = 0;
  for (; c + WIDTH <= columns; c += WIDTH)
    store(y + c, load(y + c) + load(sums + c));
  if (c < columns)
    store_some(y + c, load_some(y + c, columns - c) + load(sums + c), columns - c);
}

// Calls `run` with the number as a constant.
template <int MOST = MOST_ROWS, typename Run> void with_rows(int64_t rows, Run run) {
  if constexpr (MOST > 1)
    if (rows < MOST)
      return with_rows<MOST - 1>(rows, run);
  run(std::integral_constant<int, MOST>());
}

// Memory that is kept from call to call. What it held is gone when it grows.
class Scratch {
public:
  float *of(int64_t size) {
    if (size > size_) {
      memory_.reset(new float[size]);
      size_ = size;
    }
    return memory_.get();
  }

private:
  std::unique_ptr<float[]> memory_;
  int64_t size_ = 0;
};

template <typename T> class Loop {
public:
  Loop(const Plan &plan, const Call &call, const Team &team) : plan_(plan), call_(call), team_(team) {
    int64_t elements = 0;
    each_entry([&](const Tile &tile, const Factors &factors, float) {
      elements += tile.rows * factors.rank;
      shrink_cost_ += factors.rank * rank_cost(tile);
    });
    each_site([&](const Tile &, int64_t, int64_t blocks, int64_t cost) { expand_cost_ += blocks * cost; });
    static thread_local Scratch scratch;
    h_ = scratch.of(elements);
  }

  void run() {
    if (team_.run == nullptr || shrink_cost_ + expand_cost_ < WORTH_A_TEAM) {
      shrink(0, 1);
      expand(0, 1);
      return;
    }
    team_.run([](void *self) { static_cast<Loop *>(self)->run_share(); }, this, 0, 0);
  }

private:
  void run_share() {
    const int index = team_.index(), size = team_.size();
    shrink(index, size);
    team_.wait();
    expand(index, size);
  }

  // What a factor's element costs: it is read, and multiplied for each row.
  static int64_t element_cost(const Tile &tile) { return 1 + tile.rows; }
  int64_t rank_cost(const Tile &tile) const {
    return plan_.gather ? tile.rows : element_cost(tile) * plan_.in_features;
  }

  // run(tile, factors, weight)
  template <typename Run> void each_entry(Run run) const {
    for (int64_t t = 0; t < plan_.num_tiles; ++t)
      for (int64_t e = plan_.tiles[t].first; e < plan_.tiles[t].end; ++e)
        run(plan_.tiles[t], *plan_.factors[plan_.entries[e].segment], plan_.entries[e].weight);
  }

  // run(tile, site, its blocks of columns, the cost of one)
  template <typename Run> void each_site(Run run) const {
    for (int64_t t = 0; t < plan_.num_tiles; ++t)
      for (int64_t site = 0; site < plan_.num_sites; ++site) {
        int64_t rank = 0;
        for (int64_t e = plan_.tiles[t].first; e < plan_.tiles[t].end; ++e)
          rank += plan_.factors[plan_.entries[e].segment]->sites[site].rank;
        if (rank && call_.outputs[site].address)
          run(plan_.tiles[t], site, (plan_.widths[site] + BLOCK - 1) / BLOCK,
              (rank + 1) * element_cost(plan_.tiles[t]) * BLOCK);
      }
  }

  void shrink(int index, int size) {
    Share share(shrink_cost_, index, size);
    const int64_t stride = (plan_.in_features + WIDTH - 1) / WIDTH * WIDTH;
    const Tile *widened = nullptr;
    static thread_local Scratch scratch;
    float *x = plan_.gather ? nullptr : scratch.of(stride * MOST_ROWS);
    float *h = h_;
    each_entry([&](const Tile &tile, const Factors &factors, float weight) {
      const Range ranks = share.next(factors.rank, rank_cost(tile));
      if (ranks.begin < ranks.end && plan_.gather)
        read_rows(tile, factors, weight, ranks, h);
      else if (ranks.begin < ranks.end) {
        if (widened != &tile)
          widen(tile, x, stride);
        widened = &tile;
        with_rows(tile.rows, [&](auto rows) {
          shrink_rows<T, rows()>(x, stride, reinterpret_cast<const T *>(factors.a), plan_.in_features, h, factors.rank,
                                 weight, ranks);
        });
      }
      h += tile.rows * factors.rank;
    });
  }

  void read_rows(const Tile &tile, const Factors &factors, float weight, Range ranks, float *h) const {
    const T *a = reinterpret_cast<const T *>(factors.a);
    const int64_t *ids = reinterpret_cast<const int64_t *>(call_.x) + tile.row * call_.stride;
    for (int64_t m = 0; m < tile.rows; ++m)
      for (int64_t r = ranks.begin; r < ranks.end; ++r)
        h[m * factors.rank + r] = weight * load_some(a + ids[m * call_.stride] * factors.rank + r, 1).one[0];
  }

  void widen(const Tile &tile, float *x, int64_t stride) const {
    for (int64_t m = 0; m < tile.rows; ++m) {
      const T *row = reinterpret_cast<const T *>(call_.x) + (tile.row + m) * call_.stride;
      int64_t k = 0;
      for (; k + WIDTH <= plan_.in_features; k += WIDTH)
        store(x + m * stride + k, load(row + k));
      if (k < plan_.in_features)
        store(x + m * stride + k, load_some(row + k, plan_.in_features - k));
    }
  }

  void expand(int index, int size) {
    Share share(expand_cost_, index, size);
    const Tile *tile_before = plan_.tiles;
    const float *h = h_;
    each_site([&](const Tile &tile, int64_t site, int64_t blocks, int64_t cost) {
      for (; tile_before != &tile; ++tile_before)
        h += elements(*tile_before);
      const Range range = share.next(blocks, cost);
      for (int64_t block = range.begin; block < range.end; ++block)
        with_rows(tile.rows, [&](auto rows) { expand_block<rows()>(tile, site, block * BLOCK, h); });
    });
  }

  int64_t elements(const Tile &tile) const {
    int64_t ranks = 0;
    for (int64_t e = tile.first; e < tile.end; ++e)
      ranks += plan_.factors[plan_.entries[e].segment]->rank;
    return tile.rows * ranks;
  }

  template <int ROWS> void expand_block(const Tile &tile, int64_t site, int64_t column, const float *h) const {
    const int64_t width = plan_.widths[site];
    const int64_t columns = width - column < BLOCK ? width - column : BLOCK;
    float sums[ROWS * BLOCK] = {};
    for (int64_t e = tile.first; e < tile.end; ++e) {
      const Factors &factors = *plan_.factors[plan_.entries[e].segment];
      const Site &part = factors.sites[site];
      const T *b = reinterpret_cast<const T *>(part.b) + column;
      expand_entry<T, ROWS>(sums, h + part.column, factors.rank, b, width, columns, part.rank);
      h += ROWS * factors.rank;
    }
    const Output &output = call_.outputs[site];
    for (int m = 0; m < ROWS; ++m)
      add_block(reinterpret_cast<T *>(output.address) + (tile.row + m) * output.stride + column, sums + m * BLOCK,
                columns);
  }

  const Plan &plan_;
  const Call &call_;
  const Team &team_;
  int64_t shrink_cost_ = 0, expand_cost_ = 0;
  float *h_;
};

} // namespace

// TYPE: of x, y and the factors.
extern "C" void add_bypasses(const Plan *plan, const Call *call, const Team *team) {
  Loop<TYPE>(*plan, *call, *team).run();
}

extern "C" int64_t most_rows_of_a_tile() { return MOST_ROWS; }
