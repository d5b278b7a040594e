fn main() {
    pipo_experiments::pipo_throughput::explore()
}
