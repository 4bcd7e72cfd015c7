# Lets the addon that is built here load on every x86-64 host with glibc 2.28 or newer.
#
# The linker binds a symbol to the newest version that the build machine's glibc has, although the
# older one is still there. Where that is newer than 2.28, the symbol is taken from a stand-in: an
# empty library with the soname, the symbols and the versions that glibc 2.28 had. What runs is
# always the host's own glibc, which keeps all of them (2.34 and newer in libc.so.6).
# The C++ library is linked in. `npm run bundle` and test/cli/bundle.test.ts check the result.

# Whether this is x86-64 with glibc, and the compiler has its C++ library as an archive.
function(loza_can_link_for_old_glibc result)
  include(CheckCXXSourceCompiles)
  set(CMAKE_REQUIRED_LINK_OPTIONS -static-libstdc++)
  check_cxx_source_compiles("
    #include <string>
    #if !defined(__x86_64__) || !defined(__GLIBC__)
    #error not the platform
    #endif
    int main(int count, char** words) { return std::string(words[0]).size() == size_t(count); }"
    LOZA_LINKS_FOR_OLD_GLIBC)
  set(${result} ${LOZA_LINKS_FOR_OLD_GLIBC} PARENT_SCOPE)
endfunction()

# A stand-in for `soname`, whose further arguments are VERSION=symbol,symbol...
function(loza_add_glibc_stand_in target soname)
  set(source "${CMAKE_CURRENT_BINARY_DIR}/glibc/${target}")
  set(code "")
  set(script "")
  foreach(group IN LISTS ARGN)
    string(REGEX MATCH "^([^=]+)=(.+)$" matched "${group}")
    set(version "${CMAKE_MATCH_1}")
    string(REPLACE "," ";" symbols "${CMAKE_MATCH_2}")
    string(APPEND script "${version} {\n")
    foreach(symbol IN LISTS symbols)
      string(APPEND script "  ${symbol};\n")
      string(APPEND code "asm(\".globl ${symbol}\\n.type ${symbol},@function\\n${symbol}:\");\n")
    endforeach()
    string(APPEND script "};\n")
  endforeach()
  file(CONFIGURE OUTPUT "${source}.cpp" CONTENT "${code}" @ONLY)
  file(CONFIGURE OUTPUT "${source}.map" CONTENT "${script}" @ONLY)
  add_library(${target} SHARED "${source}.cpp")
  target_link_options(${target} PRIVATE -nostdlib "-Wl,-soname,${soname}"
    "-Wl,--version-script,${source}.map")
  set_target_properties(${target} PROPERTIES NO_SONAME ON LINK_DEPENDS "${source}.map"
    LIBRARY_OUTPUT_DIRECTORY "${CMAKE_CURRENT_BINARY_DIR}/glibc")
endfunction()

function(loza_link_for_old_glibc target)
  loza_add_glibc_stand_in(glibc_pthread libpthread.so.0
    GLIBC_2.2.5=pthread_attr_getstack,pthread_attr_setstacksize,pthread_condattr_setclock,pthread_condattr_setpshared,pthread_create,pthread_detach,pthread_getspecific,pthread_join,pthread_key_create,pthread_key_delete,pthread_kill,pthread_mutex_trylock,pthread_mutexattr_destroy,pthread_mutexattr_init,pthread_mutexattr_setpshared,pthread_mutexattr_settype,pthread_once,pthread_rwlock_destroy,pthread_rwlock_init,pthread_rwlock_rdlock,pthread_rwlock_timedrdlock,pthread_rwlock_timedwrlock,pthread_rwlock_tryrdlock,pthread_rwlock_trywrlock,pthread_rwlock_unlock,pthread_rwlock_wrlock,pthread_rwlockattr_destroy,pthread_rwlockattr_init,pthread_rwlockattr_setpshared,pthread_setspecific,pthread_spin_destroy,pthread_spin_init,pthread_spin_lock,pthread_spin_trylock,pthread_spin_unlock,sem_destroy,sem_init,sem_post,sem_timedwait,sem_trywait,sem_wait
    GLIBC_2.3.4=pthread_setaffinity_np,pthread_getaffinity_np)
  loza_add_glibc_stand_in(glibc_dl libdl.so.2
    GLIBC_2.2.5=dladdr,dlclose,dlerror,dlopen,dlsym,dlvsym
    GLIBC_2.3.4=dlmopen)
  loza_add_glibc_stand_in(glibc_rt librt.so.1
    GLIBC_2.2.5=shm_open,shm_unlink)
  loza_add_glibc_stand_in(glibc_m libm.so.6
    GLIBC_2.2.5=exp,exp2,log,log2,pow)
  target_sources(${target} PRIVATE "${CMAKE_CURRENT_FUNCTION_LIST_DIR}/glibc.cpp")
  target_link_libraries(${target} PRIVATE glibc_pthread glibc_dl glibc_rt glibc_m)
  # Archives refer to the stand-ins after they were read, which is too late for --as-needed.
  target_link_options(${target} PRIVATE -static-libstdc++ -Wl,--no-as-needed)
  set_target_properties(${target} PROPERTIES SKIP_BUILD_RPATH ON)
endfunction()
