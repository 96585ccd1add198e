// Depthwise convolutions of several edges that leave one node, forward and both gradients,
// pools, and the sums that mix what edges share.
//
// Channels are innermost. An image is copied once into a scratch frame with its zero padding; all
// edges read from there. Sites are given as runs: stretches of neighbouring sites within a row, so
// that a dense map (a run a row) and the visible sites of a masked one are the same to all below.

#include <cstdint>
#include <cstring>
#include <vector>

#include <omp.h>

namespace {

struct Run {
    int32_t row, column, length, site;  // site: of its first, counted within the image
};

// One resolution of a batch: `count` runs an image, the same for all images if `shared`.
struct Sites {
    const Run* runs;
    int64_t count, per_image, shared;

    const Run* of(int64_t image) const { return runs + (shared ? 0 : image * count); }
};

struct Shape {
    int64_t images, edges, height, width, channels, threads;
};

// `first` and `second` sets of matrices, (rows, channels) each.
struct Matrices {
    int64_t rows, channels, first, second, threads;
};

template <typename T, int LANES>
struct Vector {
    typedef T type __attribute__((vector_size(LANES * sizeof(T)), aligned(sizeof(T))));
};

// Vectors need not be aligned to their size. (An attribute does not survive being a template's
// argument, so V is found anew in here.)
template <int LANES, typename T>
inline typename Vector<T, LANES>::type load(const T* p) {
    return *reinterpret_cast<const typename Vector<T, LANES>::type*>(p);
}

template <int LANES, typename T>
inline void store(T* p, typename Vector<T, LANES>::type value) {
    *reinterpret_cast<typename Vector<T, LANES>::type*>(p) = value;
}

// Rows of `stride` values into a zero frame that is `pad` wider on every side.
template <typename T>
void frame(const T* x, int64_t stride, T* scratch, const Shape& s, int pad, const Run* runs,
           int64_t count) {
    const int64_t across = s.width + 2 * pad;
    std::memset(scratch, 0, sizeof(T) * (s.height + 2 * pad) * across * s.channels);
    for (int64_t i = 0; i < count; ++i) {
        T* to = scratch + ((runs[i].row + pad) * across + pad + runs[i].column) * s.channels;
        const T* from = x + runs[i].site * stride;
        if (stride == s.channels) {
            std::memcpy(to, from, sizeof(T) * runs[i].length * s.channels);
        } else {
            for (int j = 0; j < runs[i].length; ++j)
                std::memcpy(to + j * s.channels, from + j * stride, sizeof(T) * s.channels);
        }
    }
}

// `BLOCK` neighbouring outputs of one run: out (+)= Σ_taps w · x.
template <typename T, int LANES, int K, int D, int S, int BLOCK, bool ADDS>
inline __attribute__((always_inline)) void correlate_block(
    const T* x, int64_t across, int64_t channels, const T* w, const T* shift, T* out,
    int64_t out_stride) {
    typedef typename Vector<T, LANES>::type V;
    V sum[BLOCK];
    for (int i = 0; i < BLOCK; ++i) {
        if (ADDS) sum[i] = load<LANES>(out + i * out_stride);
        else if (shift) sum[i] = -load<LANES>(shift);
        else sum[i] = V{};
    }
    for (int kh = 0; kh < K; ++kh) {
#pragma GCC unroll 5
        for (int kw = 0; kw < K; ++kw) {
            const V tap = load<LANES>(w + (kh * K + kw) * channels);
            const T* at = x + (kh * D * across + kw * D) * channels;
#pragma GCC unroll 8
            for (int i = 0; i < BLOCK; ++i) sum[i] += tap * load<LANES>(at + i * S * channels);
        }
    }
    for (int i = 0; i < BLOCK; ++i) store<LANES>(out + i * out_stride, sum[i]);
}

template <typename T, int LANES, int K, int D, int S, bool ADDS>
void correlate(const T* scratch, int64_t across, int64_t channels, const T* w, const T* shift,
               T* out, int64_t out_stride, const Run* runs, int64_t count) {
    for (int64_t c = 0; c < channels; c += LANES) {
        for (int64_t i = 0; i < count; ++i) {
            const Run& run = runs[i];
            const T* x = scratch + (run.row * S * across + run.column * S) * channels + c;
            T* o = out + run.site * out_stride + c;
            const T* bias = shift ? shift + c : nullptr;
            int j = 0;
            for (; j + 8 <= run.length; j += 8)
                correlate_block<T, LANES, K, D, S, 8, ADDS>(
                    x + j * S * channels, across, channels, w + c, bias, o + j * out_stride, out_stride);
            for (; j + 4 <= run.length; j += 4)
                correlate_block<T, LANES, K, D, S, 4, ADDS>(
                    x + j * S * channels, across, channels, w + c, bias, o + j * out_stride, out_stride);
            for (; j < run.length; ++j)
                correlate_block<T, LANES, K, D, S, 1, ADDS>(
                    x + j * S * channels, across, channels, w + c, bias, o + j * out_stride, out_stride);
        }
    }
}

// Gradient of the taps, a row of the kernel at a time so that its sums stay in registers.
template <typename T, int LANES, int K, int D, int S>
void gather_taps(const T* scratch, int64_t across, int64_t channels, const T* g, int64_t g_stride,
                 T* to_w, const Run* runs, int64_t count) {
    typedef typename Vector<T, LANES>::type V;
    for (int64_t c = 0; c < channels; c += LANES) {
        for (int kh = 0; kh < K; ++kh) {
            V even[K], odd[K];
            for (int kw = 0; kw < K; ++kw) even[kw] = odd[kw] = V{};
            for (int64_t i = 0; i < count; ++i) {
                const Run& run = runs[i];
                const T* x = scratch + ((run.row * S + kh * D) * across + run.column * S) * channels + c;
                const T* gradient = g + run.site * g_stride + c;
                int j = 0;
                for (; j + 2 <= run.length; j += 2, x += 2 * S * channels, gradient += 2 * g_stride) {
                    const V one = load<LANES>(gradient), two = load<LANES>(gradient + g_stride);
#pragma GCC unroll 5
                    for (int kw = 0; kw < K; ++kw) {
                        even[kw] += one * load<LANES>(x + kw * D * channels);
                        odd[kw] += two * load<LANES>(x + (S + kw * D) * channels);
                    }
                }
                if (j < run.length) {
                    const V one = load<LANES>(gradient);
                    for (int kw = 0; kw < K; ++kw) even[kw] += one * load<LANES>(x + kw * D * channels);
                }
            }
            for (int kw = 0; kw < K; ++kw) {
                T* to = to_w + (kh * K + kw) * channels + c;
                store<LANES>(to, load<LANES>(to) + even[kw] + odd[kw]);
            }
        }
    }
}

// Stride 2 has no gathering form: each output's gradient goes to the sites that it saw.
template <typename T, int LANES, int K, int D, int S>
void scatter(T* scratch, int64_t across, int64_t channels, const T* w, const T* g, int64_t g_stride,
             const Run* runs, int64_t count) {
    typedef typename Vector<T, LANES>::type V;
    for (int64_t c = 0; c < channels; c += LANES) {
        for (int64_t i = 0; i < count; ++i) {
            const Run& run = runs[i];
            for (int j = 0; j < run.length; ++j) {
                const V gradient = load<LANES>(g + (run.site + j) * g_stride + c);
                T* x = scratch + (run.row * S * across + (run.column + j) * S) * channels + c;
                for (int kh = 0; kh < K; ++kh) {
#pragma GCC unroll 5
                    for (int kw = 0; kw < K; ++kw) {
                        T* at = x + (kh * D * across + kw * D) * channels;
                        store<LANES>(at, load<LANES>(at) + gradient * load<LANES>(w + (kh * K + kw) * channels + c));
                    }
                }
            }
        }
    }
}

template <typename T, int LANES, int K, int D, int S>
void forward(const Shape& s, const Sites& in, const Sites& out, const T* const* x, const T* w,
             const T* shift, T* const* y, const int64_t* y_stride) {
    const int pad = D * (K / 2);
    const int64_t across = s.width + 2 * pad, taps = K * K * s.channels;
#pragma omp parallel num_threads(s.threads)
    {
        std::vector<T> scratch((s.height + 2 * pad) * across * s.channels);
#pragma omp for schedule(static)
        for (int64_t n = 0; n < s.images; ++n) {
            for (int64_t e = 0; e < s.edges; ++e) {
                if (e == 0 || x[e] != x[e - 1])
                    frame(x[e] + n * in.per_image * s.channels, s.channels, scratch.data(), s, pad,
                          in.of(n), in.count);
                correlate<T, LANES, K, D, S, false>(
                    scratch.data(), across, s.channels, w + e * taps,
                    shift ? shift + e * s.channels : nullptr, y[e] + n * out.per_image * y_stride[e],
                    y_stride[e], out.of(n), out.count);
            }
        }
    }
}

// Adds to `to_x`; writes `to_w` unless it is null.
template <typename T, int LANES, int K, int D, int S>
void backward(const Shape& s, const Sites& in, const Sites& out, const T* const* x, const T* w,
              const T* const* g, const int64_t* g_stride, T* const* to_x, T* to_w) {
    const int pad = D * (K / 2);
    const int64_t across = s.width + 2 * pad, taps = K * K * s.channels, all = s.edges * taps;
    std::vector<T> flipped(S == 1 ? all : 0);
    for (int64_t e = 0; S == 1 && e < s.edges; ++e)
        for (int k = 0; k < K * K; ++k)
            std::memcpy(&flipped[e * taps + k * s.channels],
                        w + e * taps + (K * K - 1 - k) * s.channels, sizeof(T) * s.channels);
    // A sum for each thread, added up in order: the same threads give the same bits.
    std::vector<T> sums(to_w ? all * s.threads : 0, T(0));
#pragma omp parallel num_threads(s.threads)
    {
        const int64_t size = (s.height + 2 * pad) * across * s.channels;
        std::vector<T> seen(to_w ? size : 0), sent(size);
        T* mine = to_w ? &sums[omp_get_thread_num() * all] : nullptr;
#pragma omp for schedule(static)
        for (int64_t n = 0; n < s.images; ++n) {
            for (int64_t e = 0; e < s.edges; ++e) {
                const T* gradient = g[e] + n * out.per_image * g_stride[e];
                T* target = to_x[e] + n * in.per_image * s.channels;
                if (to_w) {
                    if (e == 0 || x[e] != x[e - 1])
                        frame(x[e] + n * in.per_image * s.channels, s.channels, seen.data(), s, pad,
                              in.of(n), in.count);
                    gather_taps<T, LANES, K, D, S>(seen.data(), across, s.channels, gradient,
                                                   g_stride[e], mine + e * taps, out.of(n), out.count);
                }
                if (S == 1) {
                    frame(gradient, g_stride[e], sent.data(), s, pad, out.of(n), out.count);
                    correlate<T, LANES, K, D, 1, true>(sent.data(), across, s.channels,
                                                       &flipped[e * taps], nullptr, target,
                                                       s.channels, in.of(n), in.count);
                } else {
                    if (e == 0 || to_x[e] != to_x[e - 1]) std::memset(sent.data(), 0, sizeof(T) * size);
                    scatter<T, LANES, K, D, S>(sent.data(), across, s.channels, w + e * taps, gradient,
                                               g_stride[e], out.of(n), out.count);
                    if (e + 1 < s.edges && to_x[e] == to_x[e + 1]) continue;
                    const Run* runs = in.of(n);
                    for (int64_t i = 0; i < in.count; ++i) {
                        T* to = target + runs[i].site * s.channels;
                        const T* from = &sent[((runs[i].row + pad) * across + pad + runs[i].column) *
                                              s.channels];
                        for (int64_t v = 0; v < runs[i].length * s.channels; ++v) to[v] += from[v];
                    }
                }
            }
        }
    }
    if (!to_w) return;
    std::memcpy(to_w, sums.data(), sizeof(T) * all);
    for (int64_t t = 1; t < s.threads; ++t)
        for (int64_t i = 0; i < all; ++i) to_w[i] += sums[t * all + i];
}

// Windows of 3 x 3 about each output: which of their sites have rows.
struct Windows {
    std::vector<int32_t> row_of;  // of each site of the map in a frame of 1; -1: none
    int64_t across;

    Windows(const Shape& s) : row_of((s.height + 2) * (s.width + 2)), across(s.width + 2) {}

    void see(const Run* runs, int64_t count) {
        row_of.assign(row_of.size(), -1);
        for (int64_t i = 0; i < count; ++i)
            for (int32_t j = 0; j < runs[i].length; ++j)
                row_of[(runs[i].row + 1) * across + 1 + runs[i].column + j] = runs[i].site + j;
    }

    // Calls `use(output, rows, number of rows)` for every output of the runs.
    template <typename Use>
    void each(const Run* runs, int64_t count, int stride, Use use) const {
        int32_t rows[9];
        for (int64_t i = 0; i < count; ++i) {
            for (int32_t j = 0; j < runs[i].length; ++j) {
                const int32_t* at = &row_of[runs[i].row * stride * across + (runs[i].column + j) * stride];
                int n = 0;
                for (int kh = 0; kh < 3; ++kh)
                    for (int kw = 0; kw < 3; ++kw)
                        if (at[kh * across + kw] >= 0) rows[n++] = at[kh * across + kw];
                use(runs[i].site + j, rows, n);
            }
        }
    }
};

// The first of the greatest values, as torch chooses it; NaN is greater than all.
template <typename T, int LANES>
struct Most {
    typedef typename Vector<T, LANES>::type V;
    typedef decltype(V{} > V{}) Places;
    V value;
    Places place;

    Most(const T* x, int64_t channels, const int32_t* rows, int n)
        : value(load<LANES>(x + rows[0] * channels)), place(Places{}) {
        for (int i = 1; i < n; ++i) {
            const V other = load<LANES>(x + rows[i] * channels);
            const Places wins = (other > value) | (other != other);
            value = wins ? other : value;
            place = wins ? Places{} + i : place;
        }
    }
};

// Greatest and mean value of each window; either may be null.
template <typename T, int LANES>
void pool(const Shape& s, const Sites& in, const Sites& out, int stride, const T* x, T* most, T* mean) {
    typedef typename Vector<T, LANES>::type V;
#pragma omp parallel num_threads(s.threads)
    {
        Windows windows(s);
#pragma omp for schedule(static)
        for (int64_t n = 0; n < s.images; ++n) {
            const T* here = x + n * in.per_image * s.channels;
            const int64_t first = n * out.per_image;
            windows.see(in.of(n), in.count);
            windows.each(out.of(n), out.count, stride, [&](int64_t site, const int32_t* rows, int count) {
                for (int64_t c = 0; c < s.channels; c += LANES) {
                    const int64_t to = (first + site) * s.channels + c;
                    if (most) store<LANES>(most + to, Most<T, LANES>(here + c, s.channels, rows, count).value);
                    if (!mean) continue;
                    V sum{};
                    for (int i = 0; i < count; ++i) sum += load<LANES>(here + c + rows[i] * s.channels);
                    store<LANES>(mean + to, sum / T(count));
                }
            });
        }
    }
}

// Adds to `to_x`.
template <typename T, int LANES>
void pool_backward(const Shape& s, const Sites& in, const Sites& out, int stride, const T* x,
                   const T* to_most, const T* to_mean, T* to_x) {
    typedef typename Vector<T, LANES>::type V;
#pragma omp parallel num_threads(s.threads)
    {
        Windows windows(s);
#pragma omp for schedule(static)
        for (int64_t n = 0; n < s.images; ++n) {
            const int64_t first = n * out.per_image, start = n * in.per_image * s.channels;
            windows.see(in.of(n), in.count);
            windows.each(out.of(n), out.count, stride, [&](int64_t site, const int32_t* rows, int count) {
                for (int64_t c = 0; c < s.channels; c += LANES) {
                    const int64_t from = (first + site) * s.channels + c;
                    const V mean = to_mean ? load<LANES>(to_mean + from) / T(count) : V{};
                    const V most = to_most ? load<LANES>(to_most + from) : V{};
                    auto place = Most<T, LANES>(x + start + c, s.channels, rows, to_most ? count : 1).place;
                    for (int i = 0; i < count; ++i) {
                        T* to = to_x + start + c + rows[i] * s.channels;
                        store<LANES>(to, load<LANES>(to) + mean + (place == i ? most : V{}));
                    }
                }
            });
        }
    }
}

// Each output: Σ_i scale · input (+ bias), channel by channel; or added to what is there.
template <typename T, int LANES>
void combine(int64_t rows, int64_t channels, int64_t outputs, int64_t inputs, int64_t threads,
             bool adds, const T* const* x, const T* scale, const T* bias, T* const* y) {
    typedef typename Vector<T, LANES>::type V;
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t row = 0; row < rows; ++row) {
        for (int64_t o = 0; o < outputs; ++o) {
            for (int64_t c = 0; c < channels; c += LANES) {
                T* to = y[o] + row * channels + c;
                V sum = adds ? load<LANES>(to) : bias ? load<LANES>(bias + o * channels + c) : V{};
                for (int64_t k = o * inputs; k < (o + 1) * inputs; ++k)
                    sum += load<LANES>(scale + k * channels + c) * load<LANES>(x[k] + row * channels + c);
                store<LANES>(to, sum);
            }
        }
    }
}

// Σ_rows x · y for every pair, (X, Y, C): some rows at a time, which stay in the cache for all pairs.
template <typename T, int LANES>
void dots(int64_t rows, int64_t channels, int64_t xs, int64_t ys, int64_t threads, const T* const* x,
          const T* const* y, T* sums) {
    typedef typename Vector<T, LANES>::type V;
    const int64_t all = xs * ys * channels, block = 64;
    std::vector<T> parts(all * threads, T(0));  // added up in order: the same threads, the same bits
#pragma omp parallel num_threads(threads)
    {
        T* mine = &parts[omp_get_thread_num() * all];
#pragma omp for schedule(static)
        for (int64_t first = 0; first < rows; first += block) {
            const int64_t last = first + block < rows ? first + block : rows;
            for (int64_t pair = 0; pair < xs * ys; ++pair) {
                const T *a = x[pair / ys], *b = y[pair % ys];
                for (int64_t c = 0; c < channels; c += LANES) {
                    V even{}, odd{};
                    int64_t row = first;
                    for (; row + 2 <= last; row += 2) {
                        const int64_t at = row * channels + c;
                        even += load<LANES>(a + at) * load<LANES>(b + at);
                        odd += load<LANES>(a + at + channels) * load<LANES>(b + at + channels);
                    }
                    if (row < last) even += load<LANES>(a + row * channels + c) * load<LANES>(b + row * channels + c);
                    T* to = mine + pair * channels + c;
                    store<LANES>(to, load<LANES>(to) + even + odd);
                }
            }
        }
    }
    std::memset(sums, 0, sizeof(T) * all);
    for (int64_t t = 0; t < threads; ++t)
        for (int64_t i = 0; i < all; ++i) sums[i] += parts[t * all + i];
}

}  // namespace

// The widest vectors of this computer, where the channels divide into them.
#ifdef __AVX512F__
constexpr int WIDE = 64;
#else
constexpr int WIDE = 32;
#endif

// 1 where a kernel of this form, type and number of channels exists.
#define FORMS(CALL, T, LANES)                                   \
    if (k == 3 && d == 1 && s == 1) { CALL(T, LANES, 3, 1, 1) } \
    if (k == 5 && d == 1 && s == 1) { CALL(T, LANES, 5, 1, 1) } \
    if (k == 3 && d == 2 && s == 1) { CALL(T, LANES, 3, 2, 1) } \
    if (k == 5 && d == 2 && s == 1) { CALL(T, LANES, 5, 2, 1) } \
    if (k == 3 && d == 1 && s == 2) { CALL(T, LANES, 3, 1, 2) } \
    if (k == 5 && d == 1 && s == 2) { CALL(T, LANES, 5, 1, 2) } \
    if (k == 3 && d == 2 && s == 2) { CALL(T, LANES, 3, 2, 2) } \
    if (k == 5 && d == 2 && s == 2) { CALL(T, LANES, 5, 2, 2) } \
    return 0;

#define FORWARD(T, LANES, K, D, S)                                                     \
    forward<T, LANES, K, D, S>(*shape, *in, *out, static_cast<const T* const*>(x),     \
                               static_cast<const T*>(w), static_cast<const T*>(shift), \
                               static_cast<T* const*>(y), y_stride);                   \
    return 1;

#define BACKWARD(T, LANES, K, D, S)                                                \
    backward<T, LANES, K, D, S>(*shape, *in, *out, static_cast<const T* const*>(x), \
                                static_cast<const T*>(w), static_cast<const T* const*>(g), g_stride, \
                                static_cast<T* const*>(to_x), static_cast<T*>(to_w)); \
    return 1;

#define POOL(T, LANES)                                                                         \
    pool<T, LANES>(*shape, *in, *out, s, static_cast<const T*>(x), static_cast<T*>(most),      \
                   static_cast<T*>(mean));                                                     \
    return 1;

#define POOL_BACKWARD(T, LANES)                                                                \
    pool_backward<T, LANES>(*shape, *in, *out, s, static_cast<const T*>(x),                    \
                            static_cast<const T*>(to_most), static_cast<const T*>(to_mean),    \
                            static_cast<T*>(to_x));                                            \
    return 1;

#define COMBINE(T, LANES)                                                                       \
    combine<T, LANES>(shape->rows, shape->channels, shape->first, shape->second, shape->threads, adds, \
                      static_cast<const T* const*>(x), static_cast<const T*>(scale),           \
                      static_cast<const T*>(bias), static_cast<T* const*>(y));                 \
    return 1;

#define DOTS(T, LANES)                                                                         \
    dots<T, LANES>(shape->rows, shape->channels, shape->first, shape->second, shape->threads,  \
                   static_cast<const T* const*>(x), static_cast<const T* const*>(y),           \
                   static_cast<T*>(sums));                                                     \
    return 1;

#define FORWARDS(T, LANES) FORMS(FORWARD, T, LANES)
#define BACKWARDS(T, LANES) FORMS(BACKWARD, T, LANES)

#define TYPES(CALL)                                                             \
    if (bytes == 4 && shape->channels % (WIDE / 4) == 0) { CALL(float, WIDE / 4) } \
    if (bytes == 4 && shape->channels % 8 == 0) { CALL(float, 8) }              \
    if (bytes == 4 && shape->channels % 4 == 0) { CALL(float, 4) }              \
    if (bytes == 8 && shape->channels % (WIDE / 8) == 0) { CALL(double, WIDE / 8) } \
    if (bytes == 8 && shape->channels % 4 == 0) { CALL(double, 4) }             \
    return 0;

extern "C" {

int mae_nas_depthwise_forward(const Shape* shape, const Sites* in, const Sites* out, int k, int d,
                              int s, int bytes, const void* x, const void* w, const void* shift,
                              const void* y, const int64_t* y_stride) {
    TYPES(FORWARDS)
}

int mae_nas_depthwise_backward(const Shape* shape, const Sites* in, const Sites* out, int k, int d,
                               int s, int bytes, const void* x, const void* w, const void* g,
                               const int64_t* g_stride, const void* to_x, void* to_w) {
    TYPES(BACKWARDS)
}

int mae_nas_pool_forward(const Shape* shape, const Sites* in, const Sites* out, int s, int bytes,
                         const void* x, void* most, void* mean) {
    TYPES(POOL)
}

int mae_nas_pool_backward(const Shape* shape, const Sites* in, const Sites* out, int s, int bytes,
                          const void* x, const void* to_most, const void* to_mean, void* to_x) {
    TYPES(POOL_BACKWARD)
}

int mae_nas_combine(const Matrices* shape, int adds, int bytes, const void* x, const void* scale,
                    const void* bias, const void* y) {
    TYPES(COMBINE)
}

int mae_nas_dots(const Matrices* shape, int bytes, const void* x, const void* y, void* sums) {
    TYPES(DOTS)
}
}
