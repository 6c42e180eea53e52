// Memory for what is worked on that many pages hold: in huge ones where the kernel gives them. With small ones each row of a
// tile may want a translation of its own.
#pragma once
#include <cstdint>
#include <cstdlib>
#include <new>
#include <vector>
#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace turnout {

template <class Number>
struct HugePages {
  using value_type = Number;
  static constexpr size_t kPage = size_t{2} << 20, kLine = 64;

  HugePages() = default;
  template <class Other>
  HugePages(const HugePages<Other>&) {}

  Number* allocate(size_t num) {
    const size_t place = num * sizeof(Number) >= kPage / 2 ? kPage : kLine;
    const size_t bytes = (num * sizeof(Number) + place - 1) / place * place;
    void* memory = std::aligned_alloc(place, bytes);
    if (!memory) throw std::bad_alloc();
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    // Advice: small pages do too.
    if (place == kPage) madvise(memory, bytes, MADV_HUGEPAGE);
#endif
    return static_cast<Number*>(memory);
  }
  void deallocate(Number* memory, size_t) { std::free(memory); }
  bool operator==(const HugePages&) const { return true; }
  bool operator!=(const HugePages&) const { return false; }
};

template <class Number>
using Large = std::vector<Number, HugePages<Number>>;

}  // namespace turnout
