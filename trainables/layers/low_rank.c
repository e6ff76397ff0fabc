/* The small products of low-rank updates, and the entries that dropout drops, on a CPU.

   trainables/layers/compiled.py calls it. Everything is float32 and row-major. For each update of a frozen
   layer x -> x W^T + bias, with x' = x but for the dropped entries, which are 0:

       forward     h = x' A^T                     y = bias + sum of scale h B^T
       backward    grad_B = scale grad^T h        e = scale grad B
                   grad_A = e^T x'                grad_x = sum of e A, 0 where dropped

   The layer's own product x W^T is left to the caller. Rows are taken in chunks, so that a chunk of
   activations is read from memory once for all that is done with it. Dropped entries are few:
   products take x as it is, and what those entries put in is taken out again.

   Built once for AVX-512 and once for AVX2 (setup.py). The order of all sums is fixed by the number
   of threads. */

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#ifdef __AVX512F__ /* 32 registers of 16 numbers */
#define WIDTH 16
#define ROWS 8
#else /* 16 registers of 8 */
#define WIDTH 8
#define ROWS 4
#endif
#define CHUNK 32 /* rows */
#define INLINE static inline __attribute__((always_inline))

typedef float wide __attribute__((vector_size(4 * WIDTH), aligned(4), may_alias));

typedef struct {
  const float *A, *B;      /* [rank, in], [out, rank] */
  const int64_t *dropped;  /* ascending indices into x [n, in] */
  float *grad_A, *grad_B;  /* null where not wanted */
  int64_t rank, drops;
  float scale;
} update;

/* To be raised with every change of what follows that compiled.py must know of */
const int low_rank_interface = 1;

INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

/* Memory for so many floats that begins where a vector may be read at once */
static float *aligned(int64_t size) {
  return aligned_alloc(64, (size * sizeof(float) + 63) / 64 * 64);
}

/* The rank with which rows of a transposed factor are whole vectors */
INLINE int64_t padded(int64_t rank) { return (rank + WIDTH - 1) / WIDTH * WIDTH; }

/* The three products ------------------------------------------------------------------------- */

/* out[rows, WIDTH] = x[rows, k] T[k, WIDTH] where a row of T is `width` long; `rows` is known when
   compiled */
INLINE void narrow_rows(int rows, const float *x, int64_t k, const float *T, int64_t width,
                        wide *out) {
  wide even[ROWS] = {{0}}, odd[ROWS] = {{0}}; /* two sums a row, for one would wait for itself */
  int64_t i = 0;
  for (; i + 1 < k; i += 2) {
    wide s = *(const wide *)(T + i * width), t = *(const wide *)(T + (i + 1) * width);
    for (int r = 0; r < rows; r++) {
      even[r] += s * x[r * k + i];
      odd[r] += t * x[r * k + i + 1];
    }
  }
  for (int r = 0; r < rows; r++) {
    if (i < k) even[r] += *(const wide *)(T + i * width) * x[r * k + i];
    out[r] = even[r] + odd[r];
  }
}

/* h[n, rank] = scale x[n, k] T[k, rank] where a row of h is `stride` long, one of T padded */
INLINE void narrow(const float *x, int64_t n, int64_t k, const float *T, int64_t rank, float scale,
                   float *h, int64_t stride) {
  wide out[ROWS];
  for (int64_t first = 0; first < rank; first += WIDTH)
    for (int64_t i = 0, rows; i < n; i += rows) {
      rows = n - i >= ROWS ? ROWS : 1;
      if (rows == ROWS)
        narrow_rows(ROWS, x + i * k, k, T + first, padded(rank), out);
      else
        narrow_rows(1, x + i * k, k, T + first, padded(rank), out);
      for (int64_t r = 0; r < rows; r++)
        for (int64_t j = 0; j < smaller(WIDTH, rank - first); j++)
          h[(i + r) * stride + first + j] = out[r][j] * scale;
    }
}

/* y[rows, 2 WIDTH] = bias + h[rows, rank] M[rank, 2 WIDTH] in rows of k; `rows` is known when
   compiled */
INLINE void widen_rows(int rows, const float *h, int64_t stride, int64_t rank, const float *M,
                       int64_t k, const float *bias, float *y) {
  wide a[4] = {{0}}, b[4] = {{0}};
  if (bias)
    for (int r = 0; r < rows; r++)
      a[r] = *(const wide *)bias, b[r] = *(const wide *)(bias + WIDTH);
  for (int64_t j = 0; j < rank; j++) {
    wide s = *(const wide *)(M + j * k), t = *(const wide *)(M + j * k + WIDTH);
    for (int r = 0; r < rows; r++) {
      a[r] += s * h[r * stride + j];
      b[r] += t * h[r * stride + j];
    }
  }
  for (int r = 0; r < rows; r++) /* y is new memory: have the next rows ready to be written */
    __builtin_prefetch(y + (r + 4) * k, 1, 3), __builtin_prefetch(y + (r + 4) * k + WIDTH, 1, 3);
  for (int r = 0; r < rows; r++)
    *(wide *)(y + r * k) = a[r], *(wide *)(y + r * k + WIDTH) = b[r];
}

/* y[n, k] = bias + h[n, rank] M[rank, k] where a row of h is `stride` long; bias may be null */
INLINE void widen(const float *h, int64_t n, int64_t stride, int64_t rank, const float *M,
                  int64_t k, const float *bias, float *y) {
  int64_t whole = k / (2 * WIDTH) * (2 * WIDTH);
  for (int64_t i = 0, rows; i < n; i += rows) {
    rows = n - i >= 4 ? 4 : 1;
    const float *from = h + i * stride;
    for (int64_t c = 0; c < whole; c += 2 * WIDTH)
      if (rows == 4)
        widen_rows(4, from, stride, rank, M + c, k, bias ? bias + c : 0, y + i * k + c);
      else
        widen_rows(1, from, stride, rank, M + c, k, bias ? bias + c : 0, y + i * k + c);
    for (int64_t r = 0; r < rows; r++)
      for (int64_t c = whole; c < k; c++) {
        float sum = bias ? bias[c] : 0;
        for (int64_t j = 0; j < rank; j++) sum += from[r * stride + j] * M[j * k + c];
        y[(i + r) * k + c] = sum;
      }
  }
}

/* M[ranks, 2 WIDTH] += h[n, ranks]^T x[n, 2 WIDTH] in rows of k; `ranks` is known when compiled */
INLINE void outer_ranks(int ranks, const float *h, int64_t stride, const float *x, int64_t n,
                        int64_t k, float *M) {
  wide a[4], b[4];
  for (int r = 0; r < ranks; r++)
    a[r] = *(wide *)(M + r * k), b[r] = *(wide *)(M + r * k + WIDTH);
  for (int64_t i = 0; i < n; i++) {
    wide s = *(const wide *)(x + i * k), t = *(const wide *)(x + i * k + WIDTH);
    for (int r = 0; r < ranks; r++) {
      a[r] += s * h[i * stride + r];
      b[r] += t * h[i * stride + r];
    }
  }
  for (int r = 0; r < ranks; r++)
    *(wide *)(M + r * k) = a[r], *(wide *)(M + r * k + WIDTH) = b[r];
}

/* M[rank, k] += h[n, rank]^T x[n, k] where a row of h is `stride` long */
INLINE void outer(const float *h, int64_t n, int64_t stride, int64_t rank, const float *x,
                  int64_t k, float *M) {
  int64_t whole = k / (2 * WIDTH) * (2 * WIDTH);
  for (int64_t c = 0; c < whole; c += 2 * WIDTH)
    for (int64_t j = 0, ranks; j < rank; j += ranks) {
      ranks = rank - j >= 4 ? 4 : 1;
      if (ranks == 4)
        outer_ranks(4, h + j, stride, x + c, n, k, M + j * k + c);
      else
        outer_ranks(1, h + j, stride, x + c, n, k, M + j * k + c);
    }
  for (int64_t i = 0; i < n; i++)
    for (int64_t j = 0; j < rank; j++)
      for (int64_t c = whole; c < k; c++) M[j * k + c] += h[i * stride + j] * x[i * k + c];
}

/* to[columns, padded(rank)] = from[rank, columns]^T, with zeros beyond the rank */
static void transposed(const float *from, int64_t rank, int64_t columns, float *to) {
  for (int64_t c = 0; c < columns; c++)
    for (int64_t r = 0; r < padded(rank); r++)
      to[c * padded(rank) + r] = r < rank ? from[r * columns + c] : 0;
}

/* The place in `dropped` of the first index that is not below `value` */
static int64_t place(const update *u, int64_t value) {
  int64_t low = 0, high = u->drops;
  while (low < high) {
    int64_t middle = (low + high) / 2;
    if (u->dropped[middle] < value)
      low = middle + 1;
    else
      high = middle;
  }
  return low;
}

/* Forward ------------------------------------------------------------------------------------ */

/* h[n, rank] -= (x - x') A^T for n rows from `first`; T = A^T, a row of h is `stride` long */
INLINE void take_out(const float *x, int64_t first, int64_t n, int64_t in, const update *u,
                     const float *T, float *h, int64_t stride) {
  int64_t width = padded(u->rank), begin = place(u, first * in), end;
  for (int64_t i = 0, row = first * in; i < n; i++, row += in, begin = end) {
    for (end = begin; end < u->drops && u->dropped[end] < row + in;) end++;
    for (int64_t c = 0; c < u->rank; c += WIDTH) {
      wide sum = {0};
      for (int64_t d = begin; d < end; d++)
        sum += *(const wide *)(T + (u->dropped[d] - row) * width + c) * x[u->dropped[d]];
      for (int64_t j = 0; j < smaller(WIDTH, u->rank - c); j++) h[i * stride + c + j] -= sum[j];
    }
  }
}

/* Writes h[n, total], every update's columns in turn, and y[n, out]. Returns 0, or 1 without
   memory. */
int low_rank_forward(const float *x, int64_t n, int64_t in, int64_t out, const float *bias,
                     int64_t number, const update *updates, float *h, float *y, int threads) {
  int64_t total = 0, widths = 0;
  for (int64_t u = 0; u < number; u++)
    total += updates[u].rank, widths += padded(updates[u].rank);
  float *T = aligned(widths * in + total * out), *M = T + widths * in;
  if (!T) return 1;
  float *to = T, *row = M;
  for (const update *u = updates; u < updates + number; u++) {
    transposed(u->A, u->rank, in, to);
    to += padded(u->rank) * in;
    for (int64_t r = 0; r < u->rank; r++, row += out)
      for (int64_t c = 0; c < out; c++) row[c] = u->B[c * u->rank + r] * u->scale;
  }
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t first = 0; first < n; first += CHUNK) {
    int64_t rows = smaller(CHUNK, n - first);
    float *column = h + first * total;
    const float *from = T;
    for (const update *u = updates; u < updates + number; u++) {
      narrow(x + first * in, rows, in, from, u->rank, 1, column, total);
      take_out(x, first, rows, in, u, from, column, total);
      column += u->rank, from += padded(u->rank) * in;
    }
    widen(h + first * total, rows, total, total, M, out, bias, y + first * out);
  }
  free(T);
  return 0;
}

/* Backward ----------------------------------------------------------------------------------- */

/* What a thread sums up for an update: grad_A [rank, in], the part of it [in, padded] that dropped
   entries put in, grad_B^T [rank, out] without the scale */
typedef struct {
  float *A, *dropped, *B;
} sums;

INLINE int64_t sums_size(const update *u, int64_t in, int64_t out) {
  return u->rank * (in + out) + padded(u->rank) * in;
}

INLINE sums sums_at(float *at, const update *u, int64_t in) {
  return (sums){at, at + u->rank * in, at + (u->rank + padded(u->rank)) * in};
}

/* Adds one update's share of n rows from `first`. `e` [n, padded] and `row` [in] are scratch; the
   first update of a layer writes grad_x, the others add to it. */
INLINE void backward_rows(const float *grad, const float *x, const float *h, int64_t stride,
                          int64_t first, int64_t n, int64_t in, int64_t out, const update *u,
                          const float *P, sums to, float *e, float *row, float *grad_x,
                          int begins) {
  int64_t width = padded(u->rank), begin = place(u, first * in), d;
  if (u->grad_A || grad_x)
    narrow(grad + first * out, n, out, P, u->rank, u->scale, e, width);
  if (u->grad_B) outer(h, n, stride, u->rank, grad + first * out, out, to.B);
  if (u->grad_A) {
    /* x has long left the cache, and columns are not what a processor fetches ahead by itself */
    for (int64_t i = 0; i < n * in; i += 16) __builtin_prefetch(x + first * in + i, 0, 3);
    outer(e, n, width, u->rank, x + first * in, in, to.A);
    d = begin;
    for (int64_t i = 0; i < n; i++)
      for (; d < u->drops && u->dropped[d] < (first + i + 1) * in; d++)
        for (int64_t c = 0; c < width; c += WIDTH)
          *(wide *)(to.dropped + (u->dropped[d] - (first + i) * in) * width + c) +=
              *(const wide *)(e + i * width + c) * x[u->dropped[d]];
  }
  if (grad_x && begins) {
    widen(e, n, width, u->rank, u->A, in, 0, grad_x + first * in);
    for (d = begin; d < u->drops && u->dropped[d] < (first + n) * in; d++)
      grad_x[u->dropped[d]] = 0;
  } else if (grad_x) {
    d = begin;
    for (int64_t i = 0; i < n; i++) {
      float *added = grad_x + (first + i) * in;
      widen(e + i * width, 1, width, u->rank, u->A, in, 0, row);
      for (; d < u->drops && u->dropped[d] < (first + i + 1) * in; d++)
        row[u->dropped[d] - (first + i) * in] = 0;
      for (int64_t c = 0; c < in; c++) added[c] += row[c];
    }
  }
}

/* Writes the gradients that the updates ask for and, unless it is null, grad_x[n, in]; x and h are
   those of the forward. Returns 0, or 1 without memory. */
int low_rank_backward(const float *grad, const float *x, const float *h, int64_t n, int64_t in,
                      int64_t out, int64_t number, const update *updates, float *grad_x,
                      int threads) {
  int64_t total = 0, widths = 0, own = 0, chunks = (n + CHUNK - 1) / CHUNK;
  for (const update *u = updates; u < updates + number; u++) {
    total += u->rank, widths += padded(u->rank), own += sums_size(u, in, out);
  }
  if (threads > chunks) threads = chunks > 1 ? (int)chunks : 1;
  int64_t scratch = CHUNK * widths + in;
  float *P = aligned(widths * out + threads * (own + scratch));
  if (!P) return 1;
  float *all = P + widths * out, *rest = all + threads * own, *to = P;
  for (const update *u = updates; u < updates + number; to += padded(u->rank) * out, u++)
    for (int64_t c = 0; c < out; c++)
      for (int64_t r = 0; r < padded(u->rank); r++)
        to[c * padded(u->rank) + r] = r < u->rank ? u->B[c * u->rank + r] : 0;
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int thread = 0; thread < threads; thread++) {
    float *mine = all + thread * own, *e = rest + thread * scratch, *row = e + CHUNK * widths;
    memset(mine, 0, own * sizeof(float));
    memset(e, 0, scratch * sizeof(float));
    for (int64_t chunk = chunks * thread / threads; chunk < chunks * (thread + 1) / threads;
         chunk++) {
      int64_t first = chunk * CHUNK;
      const float *columns = h + first * total, *from = P;
      float *sum = mine, *part = e;
      for (const update *u = updates; u < updates + number; u++) {
        backward_rows(grad, x, columns, total, first, smaller(CHUNK, n - first), in, out, u, from,
                      sums_at(sum, u, in), part, row, grad_x, u == updates);
        columns += u->rank, from += padded(u->rank) * out, sum += sums_size(u, in, out);
        part += CHUNK * padded(u->rank);
      }
    }
  }
  float *sum = all;
  for (const update *u = updates; u < updates + number; sum += sums_size(u, in, out), u++)
    for (int thread = 0; thread < threads; thread++) {
      sums of = sums_at(sum + thread * own, u, in);
      if (u->grad_A)
        for (int64_t r = 0; r < u->rank; r++)
          for (int64_t c = 0; c < in; c++) {
            float value = of.A[r * in + c] - of.dropped[c * padded(u->rank) + r];
            u->grad_A[r * in + c] = thread ? u->grad_A[r * in + c] + value : value;
          }
      if (u->grad_B)
        for (int64_t c = 0; c < out; c++)
          for (int64_t r = 0; r < u->rank; r++) {
            float value = of.B[r * out + c] * u->scale;
            u->grad_B[c * u->rank + r] = thread ? u->grad_B[c * u->rank + r] + value : value;
          }
    }
  free(P);
  return 0;
}

/* Which entries are dropped ------------------------------------------------------------------- */

/* SplitMix64: the finalizer of Steele, Lea and Flood (2014) over a counter */
INLINE uint64_t mixed(uint64_t z) {
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

/* The natural logarithm of a normal u > 0: of its exponent, and of its mantissa m in
   [sqrt(1/2), sqrt(2)) by the series of 2 atanh((m - 1) / (m + 1)), right to 3e-7 of the value */
INLINE float log_of(float u) {
  int32_t bits;
  memcpy(&bits, &u, sizeof bits);
  int32_t exponent = (bits - 0x3f3504f3) >> 23;
  bits -= exponent << 23;
  float m;
  memcpy(&m, &bits, sizeof m);
  float s = (m - 1) / (m + 1), q = s * s;
  float series = 2 + q * (2.f / 3 + q * (2.f / 5 + q * (2.f / 7 + q * (2.f / 9))));
  return exponent * 0.693147181f + s * series;
}

/* Writes ascending indices below `number`, each of which is dropped with one probability on its
   own: between two of them lies a geometric number of others, floor(log u / log(1 - probability)).
   `per_log` is 1 / log(1 - probability). Returns how many, or -1 where `room` does not hold
   them. */
int64_t drawn(int64_t number, double per_log, uint64_t seed, int64_t *entries, int64_t room) {
  enum { BATCH = 256 };
  uint32_t bits[BATCH];
  int32_t gaps[BATCH];
  float factor = (float)per_log;
  int64_t count = 0, last = -1;
  for (;;) {
    for (int i = 0; i < BATCH; i += 2) {
      uint64_t word = mixed(seed += 0x9e3779b97f4a7c15u);
      bits[i] = (uint32_t)word, bits[i + 1] = (uint32_t)(word >> 32);
    }
    for (int i = 0; i < BATCH; i++) /* u of 1 to 2^24, times 2^-24 */
      gaps[i] = (int32_t)(log_of((float)((int32_t)(bits[i] >> 8) + 1) * 0x1p-24f) * factor);
    for (int i = 0; i < BATCH; i++) {
      last += gaps[i] + 1;
      if (last >= number) return count;
      if (count == room) return -1;
      entries[count++] = last;
    }
  }
}
